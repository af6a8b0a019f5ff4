/* A pool of threads that share out numbered jobs. Which thread does a job changes no bit. */

#ifndef S7_POOL_H
#define S7_POOL_H

typedef struct Pool Pool;
typedef void (*Job)(void *context, int job, int thread);

Pool *s7_pool_new(int threads);
void s7_pool_free(Pool *pool);
int s7_pool_threads(const Pool *pool);

/* Do jobs 0 … count − 1; the caller takes part, and returns when all are done. */
void s7_pool_run(Pool *pool, int count, Job job, void *context);

#endif
