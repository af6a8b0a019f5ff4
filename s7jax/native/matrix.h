/* Products of 15-bit activations and int8 weights where they lie, exact in int64.

   Activations are int16 rows whose stride is a multiple of GROUP, zero beyond their width. Weights
   are [in, out] (products) or [out, in] (dots: embedding and keys). Sums of at most RUN products
   stay in int32 lanes; runs are added in int64, so 15-bit activations need one pass. */

#ifndef S7_MATRIX_H
#define S7_MATRIX_H

#include "fixed.h"
#include "tuning.h"
#include "vector.h"

/* Sums of products: int32 where at most RUN were added, int64 where more. */
typedef struct {
    const int32_t *narrow;
    const int64_t *wide; /* where narrow is not */
} Sums;

/* (sum + 2^cut / 2) >> cut of sums from `at` on; the int32 ones without room for a carry. */
static inline void cut_sums(Sums sums, size_t at, int count, int32_t cut, int32_t *to) {
    if (!sums.narrow) {
        const int64_t *from = sums.wide + at, half = (1 << cut) >> 1;
        for (int n = 0; n < count; n++) to[n] = (int32_t)((from[n] + half) >> cut);
        return;
    }
    const int32_t *from = sums.narrow + at;
    int32_t last = cut > 0, others = cut - last;
    for (int n = 0; n < count; n++) to[n] = ((from[n] >> others) + last) >> last;
}

#define WIDTH (2 * LANES) /* columns of a panel: two vectors */
#define SUMS (SPAN + LINE / 4) /* apart enough that rows of sums share no set of the cache */
#define ROWS (LANES / 2)  /* rows that share a loaded piece of the panel in registers */

/* Row k of a matrix with K of them; the last one again beyond, where activations are zero. */
static inline const int8_t *row_of(const int8_t *w, size_t ld, int k, int K) {
    return w + ld * (size_t)(k < K ? k : K - 1);
}

/* sums[m, n] += `depth` rows of weights times those activations of M tokens; both known at compile
   time. `a` is the first activation, `next` where memory will be read soon. */
static inline __attribute__((always_inline)) void add_rows(const int M, const int depth,
                                                           const int16_t *a, size_t stride,
                                                           const int8_t *const *rows,
                                                           const int8_t *next, int count,
                                                           int32_t *sums) {
    int n = 0;
    for (; n + LINE <= count; n += LINE) {
        for (int i = 0; i < depth; i++) __builtin_prefetch(next + depth * n + LINE * i);
        for (int at = n; at < n + LINE; at += LANES) {
            Vector sum[FEW];
            for (int m = 0; m < M; m++) sum[m] = load_lanes(sums + m * SUMS + at);
            for (int i = 0; i < depth; i += 2) {
                Vector pairs = interleave(rows[i] + at, rows[i + 1] + at);
                for (int m = 0; m < M; m++)
                    sum[m] = dot(sum[m], repeat(a + stride * (size_t)m + i), pairs);
            }
            for (int m = 0; m < M; m++) store_lanes(sums + m * SUMS + at, sum[m]);
        }
    }
    for (; n < count; n++)
        for (int m = 0; m < M; m++)
            for (int i = 0; i < depth; i++)
                sums[m * SUMS + n] += a[stride * (size_t)m + (size_t)i] * rows[i][n];
}

/* T[m, n] = Σ a[m, k] w[k, n] over start ≤ k < end, for M ≤ FEW rows and n < count ≤ SPAN; T is
   [M, wide]. Some rows of weights at a time go past all M rows of sums, which stay in the cache;
   memory is read in order, as processors foresee it. */
static void few_products(const int16_t *a, size_t stride, int M, int start, int end, int K,
                         const int8_t *w, size_t ld, int count, int32_t *sums, int64_t *T,
                         size_t wide) {
    for (int m = 0; m < M; m++) memset(T + (size_t)m * wide, 0, sizeof *T * (size_t)count);
    for (; start < end; start += RUN) {
        int stop = start + RUN < end ? start + RUN : end;
        for (int m = 0; m < M; m++) memset(sums + m * SUMS, 0, sizeof *sums * (size_t)count);
        for (int k = start, depth = M > FEW / 2 ? GROUP : PAIR; k < stop; k += depth) {
            const int8_t *rows[GROUP], *next = w + ld * (size_t)(k + AHEAD);
            for (int i = 0; i < depth; i++) rows[i] = row_of(w, ld, k + i, K);
            switch (M) {
#define CASE(m) \
    case m: add_rows(m, m > FEW / 2 ? GROUP : PAIR, a + k, stride, rows, next, count, sums); break;
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
            }
        }
        for (int m = 0; m < M; m++)
            for (int n = 0; n < count; n++) T[(size_t)m * wide + (size_t)n] += sums[m * SUMS + n];
    }
}

/* Rows [k, k + 2 · pairs) and count ≤ WIDTH columns, widened, two rows side by side. */
static void pack(const int8_t *w, size_t ld, int k, int K, int pairs, int count, int16_t *panel) {
    for (int j = 0; j < pairs; j++, panel += 2 * WIDTH) {
        const int8_t *first = row_of(w, ld, k + 2 * j, K), *second = row_of(w, ld, k + 2 * j + 1, K);
        if (count == WIDTH) {
            __builtin_prefetch(row_of(w, ld, k + 2 * j + 2 * AHEAD, K));
            __builtin_prefetch(row_of(w, ld, k + 2 * j + 2 * AHEAD + 1, K));
            store_pairs(panel, interleave(first, second));
            store_pairs(panel + WIDTH, interleave(first + LANES, second + LANES));
            continue;
        }
        for (int n = 0; n < WIDTH; n++) {
            panel[2 * n] = n < count ? first[n] : 0;
            panel[2 * n + 1] = n < count ? second[n] : 0;
        }
    }
}

/* The same of a transposed matrix: count rows of it are the panel's columns. */
static void pack_transposed(const int8_t *w, size_t ld, int k, int K, int pairs, int count,
                            int16_t *panel) {
    for (int n = 0; n < WIDTH; n++) {
        const int8_t *row = w + ld * (size_t)(n < count ? n : 0);
        for (int j = 0; j < pairs; j++) {
            int at = k + 2 * j;
            panel[j * 2 * WIDTH + 2 * n] = row[at];
            panel[j * 2 * WIDTH + 2 * n + 1] = row[at + 1 < K ? at + 1 : at];
        }
    }
}

/* sums[m, n] += over one panel, for `rows` ≤ ROWS rows known at compile time. */
static inline __attribute__((always_inline)) void tile(const int rows, const int16_t *a,
                                                       size_t stride, const int16_t *panel,
                                                       int pairs, int32_t *at) {
    Vector sums[ROWS][2];
    for (int m = 0; m < rows; m++) {
        sums[m][0] = load_lanes(at + m * WIDTH);
        sums[m][1] = load_lanes(at + m * WIDTH + LANES);
    }
#pragma GCC unroll 4
    for (int j = 0; j < pairs; j++, panel += 2 * WIDTH) {
        Vector left = load_pairs(panel), right = load_pairs(panel + WIDTH);
        for (int m = 0; m < rows; m++) {
            Vector pair = repeat(a + stride * (size_t)m + 2 * j);
            sums[m][0] = dot(sums[m][0], pair, left);
            sums[m][1] = dot(sums[m][1], pair, right);
        }
    }
    for (int m = 0; m < rows; m++) {
        store_lanes(at + m * WIDTH, sums[m][0]);
        store_lanes(at + m * WIDTH + LANES, sums[m][1]);
    }
}

/* Σ a[m, k] w[k, n] (or w[n, k] if transposed) for n < count ≤ WIDTH, [M, WIDTH], in sums or in T;
   panel has room for PANEL · WIDTH numbers, PANEL divides RUN. */
static Sums panel_product(const int16_t *a, size_t stride, int M, int K, const int8_t *w, size_t ld,
                          int transposed, int count, int16_t *panel, int32_t *sums, int64_t *T) {
    size_t all = WIDTH * (size_t)M;
    for (int k = 0; k < K; k += PANEL) {
        int pairs = ((k + PANEL < K ? PANEL : K - k) + 1) / 2;
        (transposed ? pack_transposed : pack)(w, ld, k, K, pairs, count, panel);
        if (k % RUN == 0) memset(sums, 0, sizeof *sums * all);
        for (int m = 0; m < M;) {
            const int16_t *at = a + stride * (size_t)m + k;
            int left = M - m, done = left >= ROWS ? ROWS : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            if (done == ROWS) tile(ROWS, at, stride, panel, pairs, sums + m * WIDTH);
            else if (done == 4) tile(4, at, stride, panel, pairs, sums + m * WIDTH);
            else if (done == 2) tile(2, at, stride, panel, pairs, sums + m * WIDTH);
            else tile(1, at, stride, panel, pairs, sums + m * WIDTH);
            m += done;
        }
        if (K <= RUN || ((k + PANEL) % RUN && k + PANEL < K)) continue;
        for (size_t i = 0; i < all; i++) T[i] = (k < RUN ? 0 : T[i]) + sums[i];
    }
    return K > RUN ? (Sums){NULL, T} : (Sums){sums, NULL};
}

/* T[m · wide] = Σ a[m, k] w[k] along one row of weights, for `rows` known at compile time. */
static inline __attribute__((always_inline)) void dot_tile(const int rows, const int16_t *a,
                                                           size_t stride, int K, const int8_t *w,
                                                           int64_t *T, size_t wide) {
    for (int m = 0; m < rows; m++) T[(size_t)m * wide] = 0;
    for (int start = 0; start < K; start += RUN) {
        int end = start + RUN < K ? start + RUN : K, k = start;
        Vector sums[4];
        for (int m = 0; m < rows; m++) sums[m] = zero();
        for (; k + WIDTH <= end; k += WIDTH) {
            __builtin_prefetch(w + k + 16 * LINE);
            Vector weights = widen(w + k);
            for (int m = 0; m < rows; m++)
                sums[m] = dot(sums[m], load_pairs(a + stride * (size_t)m + k), weights);
        }
        for (int m = 0; m < rows; m++) {
            int32_t sum = total(sums[m]);
            for (int i = k; i < end; i++) sum += a[stride * (size_t)m + (size_t)i] * w[i];
            T[(size_t)m * wide] += sum;
        }
    }
}

/* T[m, n] = Σ a[m, k] w[n, k] for n < count, T [M, wide]. */
static void dots(const int16_t *a, size_t stride, int M, int K, const int8_t *w, size_t ld,
                 int count, int64_t *T, size_t wide) {
    for (int n = 0; n < count; n++)
        for (int m = 0; m < M;) {
            const int16_t *at = a + stride * (size_t)m;
            const int8_t *row = w + ld * (size_t)n;
            int64_t *to = T + (size_t)m * wide + n;
            if (M - m >= 4) dot_tile(4, at, stride, K, row, to, wide), m += 4;
            else dot_tile(1, at, stride, K, row, to, wide), m++;
        }
}

#endif
