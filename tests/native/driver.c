/* Models from standard input through the native engine, results to standard output: the engine
   where there is no Python, such as under emulation. All numbers are little-endian int32, weights
   int8; test_portable.py writes them in the order in which they are read here. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../s7jax/native/model.h"

Engine *s7_engine_new(const char *instructions, int threads);
void s7_engine_free(Engine *engine);
const char *s7_instructions(int i);

static void *room(size_t bytes) {
    void *memory = calloc(bytes ? bytes : 1, 1);
    if (!memory) exit(3);
    return memory;
}

static int32_t number(void) {
    unsigned char b[4];
    if (fread(b, 1, 4, stdin) != 4) exit(4);
    return (int32_t)(b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24);
}

static int32_t *numbers(int64_t count) {
    int32_t *x = room((size_t)count * 4);
    for (int64_t i = 0; i < count; i++) x[i] = number();
    return x;
}

static void say(const int32_t *x, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        for (int shift = 0; shift < 32; shift += 8) putchar((uint32_t)x[i] >> shift & 255);
}

static Matrix matrix(void) {
    Matrix x = {.in = number()};
    x.out = number(), x.exponent = number();
    size_t size = (size_t)x.in * (size_t)x.out;
    int8_t *weight = room(size);
    if (fread(weight, 1, size, stdin) != size) exit(4);
    x.weight = weight, x.scale = numbers(x.out);
    return x;
}

static Gain gain(void) {
    Gain x = {.exponent = number()};
    x.m = numbers(number());
    return x;
}

static Scale scale_of(void) {
    Scale x = {.m = number()};
    x.e = number();
    return x;
}

static Stack stack(void) {
    Stack s = {.layers = number()};
    s.hidden = number(), s.heads = number(), s.ffn = number(), s.residual = number();
    s.rms = scale_of(), s.head_rms = scale_of(), s.score = scale_of();
    int32_t turns = number();
    s.cosine = numbers(turns), s.sine = numbers(turns);
    Layer *layers = room((size_t)s.layers * sizeof *layers);
    for (int i = 0; i < s.layers; i++) {
        Layer *l = layers + i;
        l->attn_norm = gain(), l->q_gain = gain(), l->k_gain = gain(), l->o_gain = gain();
        l->ffn_norm = gain(), l->fc2_gain = gain();
        l->q = matrix(), l->k = matrix(), l->v = matrix(), l->o = matrix();
        l->fc1 = matrix(), l->fc2 = matrix();
    }
    s.layer = layers;
    return s;
}

static Caches caches(const Stack *s, int slots) {
    size_t size = (size_t)s->hidden * (size_t)slots;
    int8_t **all = room(sizeof *all * 2 * (size_t)s->layers);
    for (int i = 0; i < 2 * s->layers; i++) all[i] = room(size);
    return (Caches){all, all + s->layers, slots, 0};
}

int main(int count, char **arguments) {
    int threads = count > 1 ? atoi(arguments[1]) : 1;
    Tables tables = {numbers(65), numbers(384), numbers(513)};
    for (int models = number(); models > 0; models--) {
        Shared shared = {.tables = tables, .context = number()};
        shared.vocab = number(), shared.experts = number(), shared.window = number();
        shared.embedding = matrix(), shared.router = matrix();
        shared.final_norm = gain(), shared.bias = gain(), shared.trunk = stack();
        int T = number(), chunk = number(), D = shared.trunk.hidden;
        int32_t *tokens = numbers(T), *h = room((size_t)T * (size_t)D * 4);
        int32_t *router = room((size_t)T * (size_t)shared.experts * 4);
        int32_t *y = room((size_t)T * (size_t)D * 4);
        int32_t *logits = room((size_t)T * (size_t)shared.vocab * 4);
        Engine *engine = s7_engine_new(count > 2 ? arguments[2] : s7_instructions(0), threads);
        if (!engine) return 5;
        const Kernels *k = engine->kernels;
        Caches c = caches(&shared.trunk, T);
        for (int at = 0; at < T; at += chunk) {
            Row row = {0, at, T - at < chunk ? T - at : chunk};
            if (k->trunk(engine, &shared, tokens + at, T, &row, 1, &c, h + (size_t)at * (size_t)D,
                         router + at * shared.experts))
                return 6;
        }
        say(h, (int64_t)T * D), say(router, (int64_t)T * shared.experts);
        if (k->head(engine, &shared, h, T, logits)) return 6;
        say(logits, (int64_t)T * shared.vocab);
        for (int e = 0; e < shared.experts; e++) {
            Expert expert = {.in_norm = gain()};
            expert.out_norm = gain(), expert.in_proj = matrix(), expert.out_proj = matrix();
            expert.stack = stack();
            c = caches(&expert.stack, T);
            Row row = {0, 0, T};
            if (k->expert(engine, &shared, &expert, h, T, &row, 1, &c, y)) return 6;
            if (k->head(engine, &shared, y, T, logits)) return 6;
            say(logits, (int64_t)T * shared.vocab);
        }
        s7_engine_free(engine);
    }
    return fflush(stdout) ? 7 : 0;
}
