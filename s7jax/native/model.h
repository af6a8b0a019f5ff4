/* A sealed model as the library takes it: tensors where they lie, dimensions, constants.

   Matrices are int8 [in, out] (the embedding [out, in]) with one int32 scale per output channel;
   gains are int32 of 15 bits. An exponent is that of one unit: value = m · 2^exponent for gains,
   m · 2^(exponent − 31) for scales. s7jax/native/library.py has the same structures for ctypes. */

#ifndef S7_MODEL_H
#define S7_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "fixed.h"
#include "pool.h"

typedef struct {
    const int8_t *weight;
    const int32_t *scale;
    int32_t in, out, exponent, unused;
} Matrix;

typedef struct {
    const int32_t *m;
    int32_t exponent, unused;
} Gain;

typedef struct {
    Gain attn_norm, q_gain, k_gain, o_gain, ffn_norm, fc2_gain;
    Matrix q, k, v, o, fc1, fc2;
} Layer;

typedef struct {
    int32_t layers, hidden, heads, ffn;
    int32_t residual; /* fraction bits of the residual stream */
    int32_t unused;
    Scale rms, head_rms, score; /* √n / 2^cut of a token and of a head; log2(e) / √head */
    const Layer *layer;
    const int32_t *cosine, *sine; /* [positions, head / 2] */
} Stack;

typedef struct {
    const int32_t *exp2, *rsqrt, *gelu;
} Tables;

typedef struct {
    Tables tables;
    int32_t context, vocab, experts, window;
    Matrix embedding, router;
    Gain final_norm, bias;
    Stack trunk;
} Shared;

typedef struct {
    Gain in_norm, out_norm;
    Matrix in_proj, out_proj;
    Stack stack;
} Expert;

/* A row of a batch: count tokens from position start on, in its own slots of every cache. */
typedef struct {
    int32_t row, start, count;
} Row;

/* Keys and values of every layer, int8 [rows, heads, slots, head]. */
typedef struct {
    int8_t *const *keys, *const *values;
    int32_t slots, unused;
} Caches;

typedef struct Engine Engine;

/* All return 0, or 1 if memory is short. Arrays [B, T, …] hold row r's i-th token at r · T + i. */
typedef struct {
    const char *name;
    int (*trunk)(Engine *, const Shared *, const int32_t *tokens, int T, const Row *, int rows,
                 const Caches *, int32_t *h, int32_t *router);
    int (*expert)(Engine *, const Shared *, const Expert *, const int32_t *h, int T, const Row *,
                  int rows, const Caches *, int32_t *y);
    int (*head)(Engine *, const Shared *, const int32_t *h, int M, int32_t *logits);
} Kernels;

extern const Kernels s7_base;
#if defined(__x86_64__)
extern const Kernels s7_avx2, s7_avx512;
#endif

/* Threads, and the memory that tokens on their way through the layers take. */
struct Engine {
    Pool *pool;
    const Kernels *kernels;
    void *memory, *scratch;
    size_t size; /* of memory, which is kept from call to call */
};

#endif
