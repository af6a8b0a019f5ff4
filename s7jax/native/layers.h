/* The layers, head and router of a sealed model over blocks of tokens, for one instruction set.

   Operators and their order are those of s7jax/integer/specification.py; every result depends on
   the tokens before it in its row and on nothing else. Threads share out columns, tokens or
   heads; all sums are of integers, so which thread does what changes no bit. */

#include <stdlib.h>

#include "matrix.h"
#include "model.h"

/* What one thread needs for itself. */
typedef struct {
    int64_t T[BLOCK * WIDTH > SPAN ? BLOCK * WIDTH : SPAN];
    int16_t panel[PANEL * WIDTH];
    int32_t sums[FEW * SUMS], line[SPAN];
    int32_t z[SCORES];
    int16_t p[SCORES + QUERIES * GROUP];
    Scale row[QUERIES];
} Scratch;

_Static_assert(RUN % PANEL == 0 && FEW * SUMS >= BLOCK * WIDTH, "sums of a block, run by run");

/* One token on its way: where it comes from, its row and position. */
typedef struct {
    int64_t at;
    int32_t row, position;
} Item;

/* Up to QUERIES tokens of one row, one after the other. */
typedef struct {
    int32_t first, count;
} Group;

/* A block of tokens and the arrays they are computed in. */
typedef struct {
    Pool *pool;
    Scratch *scratch;
    const Shared *shared;
    const Stack *stack;
    const Layer *layer;
    int8_t *keys, *values;
    int M, groups, slots, context;
    Item *items;
    Group *group;
    size_t stride, head_stride;     /* of activations; of queries, each head apart */
    int32_t *x, *q, *k, *y;         /* residual stream; products; what is quantised next */
    int16_t *a, *queries;           /* activations of 15 bits; int8 values of queries */
    Scale *unit, *query_unit;
    int32_t *wide;                  /* one row of int32 for each token */
    int64_t *partial;               /* sums over a part of a matrix's rows, for FEW tokens */
} Tokens;

static size_t padded(int64_t width) { return (size_t)((width + GROUP - 1) / GROUP * GROUP); }

/* --- One token ----------------------------------------------------------------------------- */

/* x as y · 2^e with 15 bits in the largest: e, and that largest in *top. */
static int32_t normalize(const int32_t *x, int n, int32_t *y, int32_t *top) {
    int32_t largest = 0;
    for (int i = 0; i < n; i++) {
        int32_t size = x[i] < 0 ? -x[i] : x[i];
        largest = size > largest ? size : largest;
    }
    int32_t e = bit_length((uint32_t)largest) - 15;
    Shift s = shift_by(-e);
    for (int i = 0; i < n; i++) y[i] = clip(shifted(x[i], s), SHORT);
    *top = shifted(largest, s) < SHORT ? shifted(largest, s) : SHORT;
    return e;
}

/* x · gain · 2^exponent with its largest value made 127 · 128 (or 127): a, and the scale. */
static Scale quantize(const int32_t *x, int n, const int32_t *gain, int32_t exponent, int narrow,
                      int32_t *y, int16_t *a) {
    static const Scale unit = {(int32_t)((INT64_C(1) << 60) / 127 >> 24), 24 - 60};
    int32_t top, e = normalize(x, n, y, &top);
    for (int i = 0; i < n; i++) y[i] *= gain[i];
    int32_t e2 = normalize(y, n, y, &top), inverse = (127 << 23) / (top > 1 ? top : 1);
    if (narrow) for (int i = 0; i < n; i++) a[i] = (int16_t)rsr(y[i] * inverse, 23);
    else for (int i = 0; i < n; i++) a[i] = (int16_t)rsr(y[i] * inverse, 16);
    return times(scale(top, e + e2 + exponent), unit);
}

/* 1 over the root mean square of 15-bit values; root is √(n / 2^cut). */
static Scale inverse_rms(const int32_t *y, int n, Scale root, const Tables *tables) {
    int32_t cut = bit_length((uint32_t)n), sum = 0;
    for (int i = 0; i < n; i++) sum += (y[i] * y[i]) >> cut;
    return times(rsqrt(sum > 1 ? sum : 1, tables->rsqrt), root);
}

/* RMSNorm with a gain, and quantisation: the RMS enters the scale alone. */
static Scale rms_quantize(const int32_t *x, int n, Gain gain, Scale root, const Tables *tables,
                          int32_t *y, int16_t *a) {
    int32_t top;
    normalize(x, n, y, &top);
    Scale inverse = inverse_rms(y, n, root, tables);
    return times(quantize(y, n, gain.m, gain.exponent, 0, y, a), inverse);
}

static inline int32_t interpolate(const int32_t *table, int32_t x, int32_t low_bits) {
    int32_t i = x >> low_bits, low = table[i], high = table[i + 1];
    return low + rsr((high - low) * (x & ((1 << low_bits) - 1)), low_bits);
}

/* Q12 → Q14; tables have one entry more than their last interval reads. */
static inline int32_t gelu(int32_t x, const int32_t *table) {
    const int32_t edge = 8 << 12;
    int32_t inner = interpolate(table, within(x, -edge, edge - 1) + edge, 7);
    return x >= edge ? x * 4 : x < -edge ? 0 : inner;
}

/* --- Matrices ------------------------------------------------------------------------------ */

typedef enum { DIRECTION, VALUE, ADD, REFINE, ACTIVATE, STORE } Finish;

/* A product and what is done with it. */
typedef struct {
    const Matrix *matrix;
    int32_t *to;            /* [M, out], or by an item's place if scattered */
    const int32_t *from;    /* what REFINE adds to */
    Finish finish;
    int32_t bits;           /* fraction bits of the result */
    int transposed, scattered;
    int size, jobs;         /* columns of a job, or rows; jobs before and with this product */
    int64_t *partial;       /* [jobs, M, out] where a job takes some rows of the matrix */
} Product;

typedef struct {
    Tokens *t;
    Product *products;
} Products;

/* Sums of one token's columns, from `at` on → their values, and where they belong. */
static void finish(const Tokens *t, const Product *p, int m, int first, int count, Sums sums,
                   size_t at, int32_t *line) {
    const Matrix *w = p->matrix;
    int32_t bound = 127 * 127 * w->in, kept = spare_bits(bound), cut = 7 - kept;
    bound = bound * (1 << kept) + (bound >> 1);
    int32_t spare = 30 - bit_length((uint32_t)bound), up = 1 << spare;
    const int32_t *channel = w->scale + first;
    cut_sums(sums, at, count, cut, line);
    for (int n = 0; n < count; n++) line[n] *= up;
    int32_t *to = p->to + (p->scattered ? t->items[m].at : m) * w->out + first;
    __builtin_prefetch(to + w->out); /* the next token's: rows lie too far apart to be foreseen */
    if (p->finish == DIRECTION) {
        for (int n = 0; n < count; n++) to[n] = mulhi(line[n], channel[n]);
        return;
    }
    int32_t unit = t->unit[m].m * 2;
    Shift s = shift_by(32 - spare + w->exponent + t->unit[m].e - kept + p->bits);
    for (int n = 0; n < count; n++)
        line[n] = shifted(mulhi(mulhi(line[n], channel[n]), unit), s);
    if (p->finish == STORE) memcpy(to, line, sizeof *line * (size_t)count);
    else if (p->finish == ADD) {
        for (int n = 0; n < count; n++) to[n] = clip(to[n] + line[n], TOP);
    } else if (p->finish == REFINE) {
        const int32_t *from = p->from + t->items[m].at * w->out + first;
        for (int n = 0; n < count; n++) to[n] = clip(from[n] + line[n], TOP);
    } else if (p->finish == ACTIVATE) {
        for (int n = 0; n < count; n++)
            to[n] = gelu(clip(line[n], 1 << 18), t->shared->tables.gelu);
    } else {
        int K = t->stack->hidden / t->stack->heads;
        size_t row = (size_t)t->items[m].row * (size_t)t->stack->heads;
        for (int n = 0, some; n < count; n += some) { /* what lies in one head */
            int h = (first + n) / K, c = (first + n) % K;
            size_t slot = (row + (size_t)h) * (size_t)t->slots + (size_t)t->items[m].position;
            int8_t *value = t->values + slot * (size_t)K + c;
            some = K - c < count - n ? K - c : count - n;
            for (int i = 0; i < some; i++) value[i] = (int8_t)clip(line[n + i], 127);
        }
    }
}

/* Few tokens: a job takes some rows of the matrix, whose sums are put together at the end, so
   that every thread reads memory in order. Many tokens, or dots: a job takes some columns. */
static void product_job(void *context, int job, int thread) {
    Products *all = context;
    Tokens *t = all->t;
    Scratch *scratch = t->scratch + thread;
    const Product *p = all->products;
    int before = 0, M = t->M;
    for (; job >= p->jobs; p++) before = p->jobs;
    const Matrix *w = p->matrix;
    int first = (job - before) * p->size;
    if (p->partial) {
        size_t out = (size_t)w->out;
        int64_t *T = p->partial + (size_t)(job - before) * out * (size_t)M;
        int end = w->in - first < p->size ? w->in : first + p->size;
        int span = M > FEW / 2 ? SPAN / 2 : SPAN; /* all rows of sums stay in the cache */
        for (int n = 0; n < w->out; n += span) {
            int count = w->out - n < span ? w->out - n : span;
            few_products(t->a, t->stride, M, first, end, w->in, w->weight + n, out, count,
                         scratch->sums, T + n, out);
        }
        return;
    }
    int count = w->out - first < p->size ? w->out - first : p->size;
    Sums sums = {NULL, scratch->T};
    if (p->transposed) {
        const int8_t *rows = w->weight + (size_t)w->in * (size_t)first;
        dots(t->a, t->stride, M, w->in, rows, (size_t)w->in, count, scratch->T, WIDTH);
    } else
        sums = panel_product(t->a, t->stride, M, w->in, w->weight + first, (size_t)w->out, 0,
                             count, scratch->panel, scratch->sums, scratch->T);
    for (int m = 0; m < M; m++)
        finish(t, p, m, first, count, sums, (size_t)m * WIDTH, scratch->line);
}

/* Sums of the parts, and what is done with them. */
static void put_together(Tokens *t, const Product *p, int parts) {
    size_t out = (size_t)p->matrix->out, all = out * (size_t)t->M;
    for (int part = 1; part < parts; part++)
        for (size_t i = 0; i < all; i++) p->partial[i] += p->partial[(size_t)part * all + i];
    for (int m = 0; m < t->M; m++)
        for (int n = 0; n < p->matrix->out; n += SPAN) {
            int count = p->matrix->out - n < SPAN ? p->matrix->out - n : SPAN;
            finish(t, p, m, n, count, (Sums){NULL, p->partial}, (size_t)m * out + (size_t)n,
                   t->scratch->line);
        }
}

/* The block's activations times some matrices. */
static void multiply(Tokens *t, Product *products, int count) {
    int jobs = 0, parts = 2 * s7_pool_threads(t->pool);
    int64_t *partial = t->partial;
    for (Product *p = products; p < products + count; p++) {
        int all = p->matrix->out;
        p->size = WIDTH;
        if (t->M <= FEW && !p->transposed) {
            all = p->matrix->in;
            p->size = ((all + parts - 1) / parts + GROUP - 1) / GROUP * GROUP;
            p->size = p->size < PART ? PART : p->size;
            p->partial = partial;
            partial += (size_t)p->matrix->out * (size_t)t->M * (size_t)parts;
        }
        jobs += (all + p->size - 1) / p->size;
        p->jobs = jobs;
    }
    Products all = {t, products};
    s7_pool_run(t->pool, jobs, product_job, &all);
    for (Product *p = products; p < products + count; p++)
        if (p->partial) put_together(t, p, p->jobs - (p > products ? p[-1].jobs : 0));
}

/* --- Attention ----------------------------------------------------------------------------- */

/* One head's product on one scale → normalised, rotated, in head_bits; K even. */
static int32_t turn(const Tokens *t, const int32_t *from, int32_t position, int32_t *x) {
    const Stack *s = t->stack;
    int K = s->hidden / s->heads, half = K / 2;
    int32_t top, bits = 15 - (bit_length((uint32_t)K - 1) + 1) / 2;
    normalize(from, K, x, &top);
    Scale rms = inverse_rms(x, K, s->head_rms, &t->shared->tables);
    int32_t short_m = rsr(rms.m, 15) < SHORT ? rsr(rms.m, 15) : SHORT;
    Shift by = shift_by(rms.e + 15 + bits < 0 ? rms.e + 15 + bits : 0);
    for (int i = 0; i < K; i++) x[i] = clip(shifted(x[i] * short_m, by), SHORT);
    const int32_t *cosine = s->cosine + (size_t)position * (size_t)half;
    const int32_t *sine = s->sine + (size_t)position * (size_t)half;
    for (int i = 0; i < half; i++) {
        int32_t a = x[i], b = x[half + i];
        x[i] = clip(rsr(a * cosine[i] - b * sine[i], 14), SHORT);
        x[half + i] = clip(rsr(b * cosine[i] + a * sine[i], 14), SHORT);
    }
    return bits;
}

/* Query and key of one token and head. */
static void heads_job(void *context, int job, int thread) {
    (void)thread;
    Tokens *t = context;
    const Stack *s = t->stack;
    int m = job / s->heads, h = job % s->heads, K = s->hidden / s->heads;
    size_t at = (size_t)m * (size_t)s->hidden + (size_t)h * (size_t)K;
    const Item *item = t->items + m;
    int32_t bits = turn(t, t->q + at, item->position, t->q + at);
    int16_t *query = t->queries + (size_t)job * t->head_stride;
    const int32_t *gain = t->layer->q_gain.m + h * K;
    t->query_unit[job] = quantize(t->q + at, K, gain, t->layer->q_gain.exponent - bits, 1,
                                  t->q + at, query);
    memset(query + K, 0, (t->head_stride - (size_t)K) * sizeof *query);

    turn(t, t->k + at, item->position, t->k + at);
    size_t head = (size_t)item->row * (size_t)s->heads + (size_t)h;
    int8_t *key = t->keys + (head * (size_t)t->slots + (size_t)item->position) * (size_t)K;
    Shift by = shift_by(t->layer->k_gain.exponent - bits);
    gain = t->layer->k_gain.m + h * K;
    for (int i = 0; i < K; i++) key[i] = (int8_t)clip(shifted(t->k[at + (size_t)i] * gain[i], by), 127);
}

/* Scores z of `seen` positions → 14-bit probabilities p, and their sum. */
static int32_t softmax(int32_t *z, int seen, const int32_t *table, int16_t *p) {
    int32_t largest = INT32_MIN, sum = 0;
    for (int s = 0; s < seen; s++) largest = z[s] > largest ? z[s] : largest;
    for (int s = 0; s < seen; s++) {
        int32_t x = largest - z[s], whole = x >> 16 > 25 ? 25 : x >> 16;
        int32_t value = rsr(interpolate(table, x & 0xFFFF, 10), 5 + whole);
        p[s] = (int16_t)value;
        sum += value;
    }
    return sum;
}

/* One head of a group of queries over what they see. */
static void mix_job(void *context, int job, int thread) {
    Tokens *t = context;
    const Stack *s = t->stack;
    Scratch *scratch = t->scratch + thread;
    Group g = t->group[job / s->heads];
    int h = job % s->heads, K = s->hidden / s->heads, M = g.count;
    const Item *items = t->items + g.first;
    int seen = items[M - 1].position + 1; /* by the last query */
    size_t head = ((size_t)items[0].row * (size_t)s->heads + (size_t)h) * (size_t)t->slots;
    const int8_t *keys = t->keys + head * (size_t)K, *values = t->values + head * (size_t)K;
    size_t stride = t->head_stride * (size_t)s->heads, wide = padded(seen);
    size_t first = (size_t)g.first * (size_t)s->heads + (size_t)h;
    const int16_t *queries = t->queries + first * t->head_stride;

    int32_t spare = 30 - bit_length((uint32_t)(127 * 127 * K)), up = 1 << spare;
    int columns = M == 1 ? SPAN : WIDTH;
    for (int n = 0; n < seen; n += columns) {
        int count = seen - n < columns ? seen - n : columns;
        const int8_t *from = keys + (size_t)n * (size_t)K;
        Sums sums = {NULL, scratch->T};
        if (M == 1) dots(queries, stride, 1, K, from, (size_t)K, count, scratch->T, SPAN);
        else sums = panel_product(queries, stride, M, K, from, (size_t)K, 1, count, scratch->panel,
                                  scratch->sums, scratch->T);
        for (int m = 0; m < M; m++) {
            Scale unit = times(t->query_unit[first + (size_t)m * (size_t)s->heads], s->score);
            Shift by = shift_by(31 - spare + unit.e + 16);
            int32_t *z = scratch->z + (size_t)m * (size_t)seen + n;
            cut_sums(sums, (size_t)m * WIDTH, count, 0, z);
            for (int i = 0; i < count; i++) z[i] = shifted(mulhi(z[i] * up, unit.m * 2), by);
        }
    }
    int32_t kept = spare_bits((int64_t)127 * 127 * t->context), cut = 7 - kept;
    Scale *row = scratch->row; /* reciprocal and further shift of each query */
    for (int m = 0; m < M; m++) {
        int16_t *p = scratch->p + (size_t)m * wide;
        int mine = items[m].position + 1;
        int32_t sum = softmax(scratch->z + (size_t)m * (size_t)seen, mine,
                              t->shared->tables.exp2, p);
        memset(p + mine, 0, (wide - (size_t)mine) * sizeof *p);
        int32_t n = bit_length((uint32_t)sum) - 15;
        row[m] = (Scale){(1 << 30) / shift(sum, -n) * (1 << 14), 32 - 14 - 30 - n + cut + 8};
    }
    columns = M == 1 ? SPAN : WIDTH;
    for (int c = 0; c < K; c += columns) {
        int count = K - c < columns ? K - c : columns;
        Sums sums = {NULL, scratch->T};
        if (M == 1) few_products(scratch->p, wide, 1, 0, seen, seen, values + c, (size_t)K, count, scratch->sums, scratch->T, SPAN);
        else sums = panel_product(scratch->p, wide, M, seen, values + c, (size_t)K, 0, count,
                                  scratch->panel, scratch->sums, scratch->T);
        for (int m = 0; m < M; m++) {
            Shift by = shift_by(row[m].e);
            int32_t *y = t->y + (size_t)(g.first + m) * (size_t)s->hidden + h * K + c;
            cut_sums(sums, (size_t)m * WIDTH, count, cut, y);
            for (int i = 0; i < count; i++) y[i] = shifted(mulhi(y[i], row[m].m), by);
        }
    }
}

/* --- Layers -------------------------------------------------------------------------------- */

typedef struct {
    Tokens *t;
    const int32_t *from; /* [M, width] */
    Gain gain;
    Scale root;
    int width, scattered;
} Activate;

static int16_t *activations(Tokens *t, int m, int width) {
    int16_t *a = t->a + t->stride * (size_t)m;
    memset(a + width, 0, (padded(width) - (size_t)width) * sizeof *a);
    return a;
}

static void norm_job(void *context, int m, int thread) {
    (void)thread;
    Activate *c = context;
    Tokens *t = c->t;
    const int32_t *from = c->from + (c->scattered ? t->items[m].at : m) * c->width;
    t->unit[m] = rms_quantize(from, c->width, c->gain, c->root, &t->shared->tables,
                              t->wide + (size_t)m * t->stride, activations(t, m, c->width));
}

static void quantize_job(void *context, int m, int thread) {
    (void)thread;
    Activate *c = context;
    Tokens *t = c->t;
    t->unit[m] = quantize(c->from + (size_t)m * (size_t)c->width, c->width, c->gain.m,
                          c->gain.exponent, 0, t->wide + (size_t)m * t->stride,
                          activations(t, m, c->width));
}

static void norm(Tokens *t, const int32_t *from, int width, Gain gain, Scale root, int scattered) {
    Activate c = {t, from, gain, root, width, scattered};
    s7_pool_run(t->pool, t->M, norm_job, &c);
}

/* Of t->y; its fraction bits come off the gain's exponent. */
static void activate(Tokens *t, int width, Gain gain, int32_t bits) {
    gain.exponent -= bits;
    Activate c = {t, t->y, gain, {0, 0}, width, 0};
    s7_pool_run(t->pool, t->M, quantize_job, &c);
}

static void layers(Tokens *t, const Stack *s, const Caches *caches) {
    t->stack = s;
    t->head_stride = padded(s->hidden / s->heads);
    for (int i = 0; i < s->layers; i++) {
        const Layer *l = t->layer = s->layer + i;
        t->keys = caches->keys[i], t->values = caches->values[i];
        norm(t, t->x, s->hidden, l->attn_norm, s->rms, 0);
        Product qkv[] = {{.matrix = &l->q, .to = t->q, .finish = DIRECTION},
                         {.matrix = &l->k, .to = t->k, .finish = DIRECTION},
                         {.matrix = &l->v, .to = t->y, .finish = VALUE}};
        multiply(t, qkv, 3);
        s7_pool_run(t->pool, t->M * s->heads, heads_job, t);
        s7_pool_run(t->pool, t->groups * s->heads, mix_job, t);
        activate(t, s->hidden, l->o_gain, 8);
        Product o = {.matrix = &l->o, .to = t->x, .finish = ADD, .bits = s->residual};
        multiply(t, &o, 1);
        norm(t, t->x, s->hidden, l->ffn_norm, s->rms, 0);
        Product fc1 = {.matrix = &l->fc1, .to = t->y, .finish = ACTIVATE, .bits = 12};
        multiply(t, &fc1, 1);
        activate(t, s->ffn, l->fc2_gain, 14);
        Product fc2 = {.matrix = &l->fc2, .to = t->x, .finish = ADD, .bits = s->residual};
        multiply(t, &fc2, 1);
    }
}

/* Memory for blocks of up to `most` tokens; pointers into one piece of it. */
static int make_room(Tokens *t, Engine *engine, const Shared *shared, const Stack *s, int most) {
    int D = shared->trunk.hidden, heads = s ? s->heads : 1;
    int widest = D > shared->experts ? D : shared->experts;
    if (s && s->hidden > widest) widest = s->hidden;
    if (s && s->ffn > widest) widest = s->ffn;
    memset(t, 0, sizeof *t);
    t->pool = engine->pool, t->shared = shared, t->context = shared->context;
    t->stride = padded(widest);
    size_t n = (size_t)most, row = t->stride * sizeof(int32_t), head = padded(s ? s->hidden / s->heads : 1);
    size_t sizes[] = {row, row, row, row, row, t->stride * sizeof(int16_t),
                      (size_t)heads * head * sizeof(int16_t), sizeof(Scale),
                      (size_t)heads * sizeof(Scale), sizeof(Item), sizeof(Group),
                      0};
    size_t parts = 2 * (size_t)s7_pool_threads(engine->pool);
    size_t all = 0, at[sizeof sizes / sizeof *sizes];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        at[i] = all;
        all += (sizes[i] * n + LINE - 1) / LINE * LINE;
    }
    /* Three matrices of a layer's width at a time, or one of any width. */
    all += parts * (n < FEW ? n : FEW) * 3 * t->stride * sizeof(int64_t);
    if (!engine->scratch)
        engine->scratch = malloc(sizeof(Scratch) * (size_t)s7_pool_threads(engine->pool));
    if (engine->size < all) {
        free(engine->memory);
        engine->memory = malloc(all);
        engine->size = engine->memory ? all : 0;
    }
    char *memory = engine->memory;
    if (!memory || !engine->scratch) return 1;
    t->scratch = engine->scratch;
    t->x = (int32_t *)(memory + at[0]), t->q = (int32_t *)(memory + at[1]);
    t->k = (int32_t *)(memory + at[2]), t->y = (int32_t *)(memory + at[3]);
    t->wide = (int32_t *)(memory + at[4]), t->a = (int16_t *)(memory + at[5]);
    t->queries = (int16_t *)(memory + at[6]), t->unit = (Scale *)(memory + at[7]);
    t->query_unit = (Scale *)(memory + at[8]), t->items = (Item *)(memory + at[9]);
    t->group = (Group *)(memory + at[10]), t->partial = (int64_t *)(memory + at[11]);
    return 0;
}

/* The next block of a batch: up to BLOCK tokens, row after row; 0 when there are none left. */
static int next_block(Tokens *t, const Row *rows, int count, int T, int *row, int *done) {
    t->M = t->groups = 0;
    while (*row < count && t->M < BLOCK) {
        const Row *r = rows + *row;
        int position = r->start + *done, most = SCORES / (position + QUERIES);
        int wanted = r->count - *done;
        if (wanted > BLOCK - t->M) wanted = BLOCK - t->M;
        if (wanted > QUERIES) wanted = QUERIES;
        if (wanted > most) wanted = most < 1 ? 1 : most;
        if (wanted > 0) t->group[t->groups++] = (Group){t->M, wanted};
        for (int i = 0; i < wanted; i++)
            t->items[t->M++] = (Item){(int64_t)r->row * T + *done + i, r->row, position + i};
        *done += wanted;
        if (*done >= r->count) ++*row, *done = 0;
    }
    return t->M;
}

static int tokens_of(const Row *rows, int count) {
    int64_t all = 0;
    for (int i = 0; i < count; i++) all += rows[i].count;
    return all < 1 ? 1 : all > BLOCK ? BLOCK : (int)all;
}

static void embed(Tokens *t, const int32_t *tokens) {
    const Matrix *w = &t->shared->embedding;
    int D = w->in;
    Shift by = shift_by(10 + w->exponent - 31 + t->shared->trunk.residual);
    for (int m = 0; m < t->M; m++) {
        int32_t token = tokens[t->items[m].at];
        const int8_t *row = w->weight + (size_t)token * (size_t)D;
        for (int i = 0; i < D; i++)
            t->x[(size_t)m * (size_t)D + (size_t)i] =
                shifted(mulhi(row[i] * (1 << 22), w->scale[token]), by);
    }
}

/* --- What the library gives ---------------------------------------------------------------- */

static int trunk(Engine *engine, const Shared *shared, const int32_t *tokens, int T,
                 const Row *rows, int count, const Caches *caches, int32_t *h, int32_t *router) {
    Tokens t;
    if (make_room(&t, engine, shared, &shared->trunk, tokens_of(rows, count))) return 1;
    int D = shared->trunk.hidden, E = shared->experts, row = 0, done = 0;
    t.slots = caches->slots;
    Shift bias = shift_by(shared->bias.exponent - 30 + 16);
    int32_t bound = TOP / shared->window;
    while (next_block(&t, rows, count, T, &row, &done)) {
        embed(&t, tokens);
        layers(&t, &shared->trunk, caches);
        norm(&t, t.x, D, shared->final_norm, shared->trunk.rms, 0);
        Product p = {.matrix = &shared->router, .to = router, .finish = STORE, .bits = 16,
                     .scattered = 1};
        multiply(&t, &p, 1);
        for (int m = 0; m < t.M; m++) {
            int64_t at = t.items[m].at;
            memcpy(h + at * D, t.x + (size_t)m * (size_t)D, sizeof *h * (size_t)D);
            for (int e = 0; e < E; e++) {
                int32_t *logit = router + at * E + e;
                *logit = clip(clip(*logit + shifted(shared->bias.m[e] >> 1, bias), TOP), bound);
            }
        }
    }
    return 0;
}

static int expert(Engine *engine, const Shared *shared, const Expert *e, const int32_t *h, int T,
                  const Row *rows, int count, const Caches *caches, int32_t *y) {
    Tokens t;
    if (make_room(&t, engine, shared, &e->stack, tokens_of(rows, count))) return 1;
    int row = 0, done = 0;
    t.slots = caches->slots;
    while (next_block(&t, rows, count, T, &row, &done)) {
        norm(&t, h, shared->trunk.hidden, e->in_norm, shared->trunk.rms, 1);
        Product in = {.matrix = &e->in_proj, .to = t.x, .finish = STORE, .bits = e->stack.residual};
        multiply(&t, &in, 1);
        layers(&t, &e->stack, caches);
        norm(&t, t.x, e->stack.hidden, e->out_norm, e->stack.rms, 0);
        Product out = {.matrix = &e->out_proj, .to = y, .from = h, .finish = REFINE,
                       .bits = shared->trunk.residual, .scattered = 1};
        multiply(&t, &out, 1);
    }
    return 0;
}

static int head(Engine *engine, const Shared *shared, const int32_t *h, int M, int32_t *logits) {
    Tokens t;
    if (make_room(&t, engine, shared, NULL, M < BLOCK ? M : BLOCK)) return 1;
    Row all = {0, 0, M};
    int row = 0, done = 0;
    while (next_block(&t, &all, 1, M, &row, &done)) {
        norm(&t, h, shared->trunk.hidden, shared->final_norm, shared->trunk.rms, 1);
        Product p = {.matrix = &shared->embedding, .to = logits, .finish = STORE, .bits = 16,
                     .transposed = 1, .scattered = 1};
        multiply(&t, &p, 1);
    }
    return 0;
}
