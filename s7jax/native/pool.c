#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "tuning.h"

struct Pool {
    int threads;
    pthread_t *handles;
    Job job;
    void *context;
    atomic_int left, done;      /* jobs nobody has taken (or fewer than none); jobs done */
    atomic_int round, sleeping; /* round changes when there is work; −1: end */
    pthread_mutex_t lock;
    pthread_cond_t wake;
};

typedef struct {
    Pool *pool;
    int thread;
} Start;

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static void take_jobs(Pool *pool, int thread) {
    int left;
    while ((left = atomic_fetch_sub(&pool->left, 1)) > 0) {
        pool->job(pool->context, left - 1, thread);
        atomic_fetch_add(&pool->done, 1);
    }
}

/* Until the round is another than the last one: a short look, then sleep. */
static int await_round(Pool *pool, int last) {
    for (int i = 0; i < SPINS; i++) {
        int round = atomic_load(&pool->round);
        if (round != last) return round;
        pause_briefly();
    }
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleeping, 1);
    while (atomic_load(&pool->round) == last) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleeping, 1);
    pthread_mutex_unlock(&pool->lock);
    return atomic_load(&pool->round);
}

static void *work(void *argument) {
    Start *start = argument;
    Pool *pool = start->pool;
    int thread = start->thread, round = 0;
    free(start);
    while ((round = await_round(pool, round)) >= 0) take_jobs(pool, thread);
    return NULL;
}

static void start_round(Pool *pool, int round) {
    atomic_store(&pool->round, round);
    if (atomic_load(&pool->sleeping)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
}

Pool *s7_pool_new(int threads) {
    Pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->threads = 1;
    pool->handles = calloc((size_t)threads, sizeof *pool->handles);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    while (pool->handles && pool->threads < threads) {
        Start *start = malloc(sizeof *start);
        if (!start) break;
        *start = (Start){pool, pool->threads};
        if (pthread_create(&pool->handles[pool->threads], NULL, work, start)) {
            free(start);
            break;
        }
        pool->threads++;
    }
    return pool; /* with as many threads as the system gives */
}

void s7_pool_free(Pool *pool) {
    if (!pool) return;
    start_round(pool, -1);
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->handles[i], NULL);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->wake);
    free(pool->handles);
    free(pool);
}

int s7_pool_threads(const Pool *pool) { return pool->threads; }

void s7_pool_run(Pool *pool, int count, Job job, void *context) {
    if (pool->threads == 1 || count == 1) {
        for (int i = 0; i < count; i++) job(context, i, 0);
        return;
    }
    /* Nobody reads these before there are jobs left: those of the last call are all done. */
    pool->job = job, pool->context = context;
    atomic_store(&pool->done, 0);
    atomic_store(&pool->left, count);
    start_round(pool, (atomic_load(&pool->round) + 1) & 0xFFFF);
    take_jobs(pool, 0);
    /* A thread that has taken no job is not waited for: it may not even be running. */
    for (int i = 0; atomic_load(&pool->done) < count; i++) {
        if (i < SPINS) pause_briefly();
        else sched_yield(); /* others have the processor */
    }
}
