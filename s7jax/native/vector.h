/* What matrix kernels need of a processor: int16 pairs times int16 pairs, added to int32 lanes.

   A lane adds at most 1,024 products of 127 · 16,256, below 2^31: nothing saturates or wraps.
   Defined for the instruction set that S7_AVX512, S7_AVX2 or neither of them names. */

#ifndef S7_VECTOR_H
#define S7_VECTOR_H

#include <stdint.h>
#include <string.h>

#if defined(S7_AVX512)

#include <immintrin.h>
#define LANES 16
typedef __m512i Vector;

static inline Vector zero(void) { return _mm512_setzero_si512(); }
static inline Vector load_lanes(const int32_t *at) { return _mm512_loadu_si512(at); }
static inline void store_lanes(int32_t *at, Vector x) { _mm512_storeu_si512(at, x); }
static inline Vector load_pairs(const int16_t *at) { return _mm512_loadu_si512(at); }
static inline void store_pairs(int16_t *at, Vector x) { _mm512_storeu_si512(at, x); }
/* 2 · LANES int8, widened. */
static inline Vector widen(const int8_t *at) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)at));
}
/* LANES pairs (first[i], second[i]), widened. */
static inline Vector interleave(const int8_t *first, const int8_t *second) {
    __m128i a = _mm_loadu_si128((const __m128i *)first);
    __m128i b = _mm_loadu_si128((const __m128i *)second);
    return _mm512_cvtepi8_epi16(
        _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b)));
}
static inline Vector repeat(const int16_t *pair) {
    int32_t both;
    memcpy(&both, pair, 4);
    return _mm512_set1_epi32(both);
}
static inline Vector dot(Vector sum, Vector a, Vector b) { return _mm512_dpwssd_epi32(sum, a, b); }
static inline int32_t total(Vector x) {
    __m256i y = _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    __m128i z = _mm_add_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    z = _mm_add_epi32(z, _mm_shuffle_epi32(z, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(z, _mm_shuffle_epi32(z, 0xB1)));
}

#elif defined(S7_AVX2)

#include <immintrin.h>
#define LANES 8
typedef __m256i Vector;

static inline Vector zero(void) { return _mm256_setzero_si256(); }
static inline Vector load_lanes(const int32_t *at) {
    return _mm256_loadu_si256((const __m256i *)at);
}
static inline void store_lanes(int32_t *at, Vector x) { _mm256_storeu_si256((__m256i *)at, x); }
static inline Vector load_pairs(const int16_t *at) {
    return _mm256_loadu_si256((const __m256i *)at);
}
static inline void store_pairs(int16_t *at, Vector x) { _mm256_storeu_si256((__m256i *)at, x); }
static inline Vector widen(const int8_t *at) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)at));
}
static inline Vector interleave(const int8_t *first, const int8_t *second) {
    __m128i a = _mm_loadl_epi64((const __m128i *)first);
    __m128i b = _mm_loadl_epi64((const __m128i *)second);
    return _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b));
}
static inline Vector repeat(const int16_t *pair) {
    int32_t both;
    memcpy(&both, pair, 4);
    return _mm256_set1_epi32(both);
}
static inline Vector dot(Vector sum, Vector a, Vector b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
static inline int32_t total(Vector x) {
    __m128i z = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    z = _mm_add_epi32(z, _mm_shuffle_epi32(z, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(z, _mm_shuffle_epi32(z, 0xB1)));
}

#else /* plain C, which compilers make NEON, RVV or SSE2 of */

#define LANES 8
typedef union {
    int32_t lane[LANES];
    int16_t half[2 * LANES];
} Vector;

static inline Vector zero(void) {
    Vector x = {{0}};
    return x;
}
static inline Vector load_lanes(const int32_t *at) {
    Vector x;
    memcpy(&x, at, sizeof x);
    return x;
}
static inline void store_lanes(int32_t *at, Vector x) { memcpy(at, &x, sizeof x); }
static inline Vector load_pairs(const int16_t *at) {
    Vector x;
    memcpy(&x, at, sizeof x);
    return x;
}
static inline void store_pairs(int16_t *at, Vector x) { memcpy(at, &x, sizeof x); }
static inline Vector widen(const int8_t *at) {
    Vector x;
    for (int i = 0; i < 2 * LANES; i++) x.half[i] = at[i];
    return x;
}
static inline Vector interleave(const int8_t *first, const int8_t *second) {
    Vector x;
    for (int i = 0; i < LANES; i++) {
        x.half[2 * i] = first[i];
        x.half[2 * i + 1] = second[i];
    }
    return x;
}
static inline Vector repeat(const int16_t *pair) {
    Vector x;
    for (int i = 0; i < LANES; i++) memcpy(x.half + 2 * i, pair, 4);
    return x;
}
static inline Vector dot(Vector sum, Vector a, Vector b) {
    for (int i = 0; i < LANES; i++)
        sum.lane[i] += a.half[2 * i] * b.half[2 * i] + a.half[2 * i + 1] * b.half[2 * i + 1];
    return sum;
}
static inline int32_t total(Vector x) {
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += x.lane[i];
    return sum;
}

#endif

#endif
