/* The library's entries: what s7jax/native/library.py calls. */

#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "tuning.h"

#define EXPORT __attribute__((visibility("default")))

static int runs_here(const char *name) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!strcmp(name, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
    if (!strcmp(name, "avx512"))
        return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
    return !strcmp(name, "base");
}

static const Kernels *const all[] = {
#if defined(__x86_64__)
    &s7_avx512, &s7_avx2,
#endif
    &s7_base};

/* The name of the i-th instruction set that runs here, best first; NULL: there are no more. */
EXPORT const char *s7_instructions(int i) {
    for (size_t n = 0; n < sizeof all / sizeof *all; n++)
        if (runs_here(all[n]->name) && i-- == 0) return all[n]->name;
    return NULL;
}

/* The i-th size of tuning.h, and its name; NULL: there are no more. */
EXPORT const char *s7_tuning(int i, int *value) {
    static const struct {
        const char *name;
        int value;
    } sizes[] = {{"few", FEW},         {"group", GROUP},     {"pair", PAIR},
                 {"ahead", AHEAD},
                 {"span", SPAN},       {"part", PART},       {"run", RUN},         {"panel", PANEL},
                 {"block", BLOCK},     {"queries", QUERIES}, {"scores", SCORES},
                 {"line", LINE}};
    if ((size_t)i >= sizeof sizes / sizeof *sizes) return NULL;
    *value = sizes[i].value;
    return sizes[i].name;
}

EXPORT Engine *s7_engine_new(const char *instructions, int threads) {
    Engine *engine = calloc(1, sizeof *engine);
    if (!engine) return NULL;
    for (size_t n = 0; n < sizeof all / sizeof *all; n++)
        if (!strcmp(all[n]->name, instructions) && runs_here(instructions))
            engine->kernels = all[n];
    engine->pool = engine->kernels ? s7_pool_new(threads) : NULL;
    if (engine->pool) return engine;
    free(engine);
    return NULL;
}

EXPORT void s7_engine_free(Engine *engine) {
    if (!engine) return;
    s7_pool_free(engine->pool);
    free(engine->memory);
    free(engine->scratch);
    free(engine);
}

EXPORT int s7_trunk(Engine *engine, const Shared *shared, const int32_t *tokens, int T,
                    const Row *rows, int count, const Caches *caches, int32_t *h,
                    int32_t *router) {
    return engine->kernels->trunk(engine, shared, tokens, T, rows, count, caches, h, router);
}

EXPORT int s7_expert(Engine *engine, const Shared *shared, const Expert *expert, const int32_t *h,
                     int T, const Row *rows, int count, const Caches *caches, int32_t *y) {
    return engine->kernels->expert(engine, shared, expert, h, T, rows, count, caches, y);
}

EXPORT int s7_head(Engine *engine, const Shared *shared, const int32_t *h, int M,
                   int32_t *logits) {
    return engine->kernels->head(engine, shared, h, M, logits);
}
