/* Fixed-point numbers of scheme s7-int8-2, as s7jax/integer/specification.py defines them.

   int32 values below 2^31 in magnitude; products in int64, then cut. No left shift of a negative
   number and no overflow anywhere: multiplications by powers of two stand in their place. */

#ifndef S7_FIXED_H
#define S7_FIXED_H

#include <stdint.h>

#define TOP ((1 << 30) - 1) /* what saturating operators never exceed */
#define SHORT 32767         /* largest value of 15 bits */

typedef struct {
    int32_t m, e; /* m · 2^e, 2^29 ≤ m < 2^30, or m = 0 */
} Scale;

static inline int32_t clip(int32_t x, int32_t bound) {
    return x > bound ? bound : x < -bound ? -bound : x;
}

static inline int32_t within(int32_t x, int32_t low, int32_t high) {
    return x > high ? high : x < low ? low : x;
}

/* Half up: the one rounding rule; |x| ≤ 2^30, 0 ≤ k ≤ 30. */
static inline int32_t rsr(int32_t x, int32_t k) { return (x + ((1 << k) >> 1)) >> k; }

static inline int32_t mulhi(int32_t a, int32_t b) { return (int32_t)(((int64_t)a * b) >> 32); }

/* x · 2^k as three numbers that a whole row shares. */
typedef struct {
    int32_t bound, factor, right;
} Shift;

static inline Shift shift_by(int32_t k) {
    int32_t left = within(k, 0, 30);
    Shift s = {TOP >> left, 1 << left, within(-k, 0, 30)};
    return s;
}

static inline int32_t shifted(int32_t x, Shift s) {
    return rsr(clip(x, s.bound) * s.factor, s.right);
}

static inline int32_t shift(int32_t x, int32_t k) { return shifted(x, shift_by(k)); }

static inline int32_t bit_length(uint32_t x) { return x ? 32 - __builtin_clz(x) : 0; }

static inline Scale scale(int32_t m, int32_t e) {
    int32_t n = bit_length((uint32_t)m) - 30;
    Scale s = {n > 0 ? m >> 1 : m * (1 << within(-n, 0, 30)), e + n};
    return s;
}

static inline Scale times(Scale a, Scale b) {
    return scale(mulhi(a.m * 2, b.m * 2), a.e + b.e + 30);
}

/* Bits below the high half that the sum of both halves can keep. */
static inline int32_t spare_bits(int64_t bound) {
    return within(29 - bit_length((uint32_t)bound), 0, 7);
}

/* 1/√x: table of 384 and one Newton step. */
static inline Scale rsqrt(int32_t x, const int32_t *table) {
    int32_t k = (30 - bit_length((uint32_t)x)) & ~1;
    int32_t y = x * (1 << k), r = table[(y >> 21) - 128];
    int32_t t = 3 * (1 << 26) - mulhi(y, r * r);
    return scale(mulhi(r * (1 << 15), t * 8), (k >> 1) - 42);
}

#endif
