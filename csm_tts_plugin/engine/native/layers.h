/* One layer of backbone or depth decoder for one position of a few rows, in float32. */
#ifndef LAYERS_H
#define LAYERS_H

#include "vectors.h"

typedef struct {
    const float *norm1, *qkv, *out, *norm2, *gate_up, *down;
} Layer;

typedef struct {
    int64_t layers, width, inner, heads, kv_heads, dim;
    float eps, scale;
    const Layer *layer;
    const float *norm;
    const float *cos, *sin; /* [positions][dim] */
} Stack;

/* Products ------------------------------------------------------------------------------------- */

/* One panel of x [depth][rows] times w -> y [rows][ys], or added to it. */
INLINE void tile(const int rows, const float *x, const float *w, int64_t depth, float *y,
                 int64_t ys, int add)
{
    vec sum[2 * MOST];
#pragma GCC unroll 16
    for (int i = 0; i < 2 * rows; i++)
        sum[i] = add ? *(const vec *)(y + i / 2 * ys + i % 2 * WIDE) : (vec){0};
    for (int64_t k = 0; k < depth; k += 4, w += 4 * PANEL, x += 4 * rows) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const vec a = *(const vec *)(w + j * PANEL), b = *(const vec *)(w + j * PANEL + WIDE);
            __builtin_prefetch(w + (AHEAD + j) * PANEL);
            __builtin_prefetch(w + (AHEAD + j) * PANEL + WIDE);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                sum[2 * r] += x[j * rows + r] * a;
                sum[2 * r + 1] += x[j * rows + r] * b;
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 2 * rows; i++)
        *(vec *)(y + i / 2 * ys + i % 2 * WIDE) = sum[i];
}

#define CASE(R)                                                             \
    case R:                                                                 \
        for (int64_t at = 0; at < columns; at += PANEL, w += depth * PANEL) \
            tile(R, x, w, depth, y + at, ys, add);                          \
        break;

/* x [depth][rows] times the panels w -> y [rows][ys], or added to it. */
static void product(int rows, const float *x, const float *w, int64_t depth, int64_t columns,
                    float *y, int64_t ys, int add)
{
    switch (rows) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
#if MOST > 4
        CASE(5)
        CASE(6)
        CASE(7)
        CASE(8)
#endif
    }
}

/* Between the products ------------------------------------------------------------------------- */

/* RMS norm of x [rows][width] -> y [width][rows]. */
static void norm(int rows, const float *x, const float *weight, int64_t width, float eps, float *y)
{
    for (int r = 0; r < rows; r++) {
        const float *row = x + r * width;
        vec sum = {0};
        for (int64_t k = 0; k < width; k += WIDE)
            sum += *(const vec *)(row + k) * *(const vec *)(row + k);
        const float by = 1.0f / sqrtf(total(sum) / (float)width + eps);
        for (int64_t k = 0; k < width; k++)
            y[k * rows + r] = row[k] * by * weight[k];
    }
}

/* x [rows][width] -> y [width][rows] */
static void turn(int rows, const float *x, int64_t xs, int64_t width, float *y)
{
    for (int r = 0; r < rows; r++)
        for (int64_t k = 0; k < width; k++)
            y[k * rows + r] = x[r * xs + k];
}

/* SiLU of the first half times the second: x [rows][2 * inner] -> y [inner][rows], x is changed. */
static void gate(int rows, float *x, int64_t xs, int64_t inner, float *y)
{
    for (int r = 0; r < rows; r++)
        for (int64_t k = 0; k < inner; k += WIDE) {
            vec *low = (vec *)(x + r * xs + k);
            const vec up = *(const vec *)(x + r * xs + inner + k);
            *low = *low / (1.0f + power(-*low)) * up;
        }
    turn(rows, x, xs, inner, y);
}

/* Rotary position embedding of `heads` heads of x [heads][dim], in the half-split layout. */
static void rotate(float *x, int64_t heads, int64_t dim, const float *cos, const float *sin)
{
    const int64_t half = dim / 2;
    for (int64_t h = 0; h < heads; h++, x += dim)
        for (int64_t i = 0; i < half; i++) {
            const float low = x[i], high = x[half + i];
            x[i] = low * cos[i] - high * sin[i];
            x[half + i] = high * cos[half + i] + low * sin[half + i];
        }
}

/* Attention of one query head over n positions of keys and values [n][dim] -> y [dim].
 * `vecs`: dim in registers. `scores`: room for n numbers, rounded up to a register. */
INLINE void attend(const int vecs, const float *q, const float *keys, const float *values,
                   int64_t n, float scale, float *scores, float *y)
{
    const int64_t dim = vecs * WIDE;
    float top = -INFINITY;
    vec asked[vecs], sum[vecs], all = {0};
    memcpy(asked, q, sizeof asked);
    for (int64_t p = 0; p < n; p++) {
        vec product = asked[0] * *(const vec *)(keys + p * dim);
#pragma GCC unroll 16
        for (int v = 1; v < vecs; v++)
            product += asked[v] * *(const vec *)(keys + p * dim + v * WIDE);
        scores[p] = total(product) * scale;
        top = scores[p] > top ? scores[p] : top;
    }
    for (int64_t p = n; p % WIDE; p++)
        scores[p] = -INFINITY;
    for (int64_t p = 0; p < n; p += WIDE) {
        const vec share = power(*(const vec *)(scores + p) - top);
        *(vec *)(scores + p) = share;
        all += share;
    }
    const float by = 1.0f / total(all);
    for (int v = 0; v < vecs; v++)
        sum[v] = (vec){0};
    for (int64_t p = 0; p < n; p++)
#pragma GCC unroll 16
        for (int v = 0; v < vecs; v++)
            sum[v] += scores[p] * *(const vec *)(values + p * dim + v * WIDE);
    for (int v = 0; v < vecs; v++)
        *(vec *)(y + v * WIDE) = sum[v] * by;
}

#define HEAD(VECS)                                          \
    case VECS:                                              \
        attend(VECS, q, keys, values, n, scale, scores, y); \
        return 1;

/* `attend` for the head sizes there are; 0 for others. */
static int attended(int64_t dim, const float *q, const float *keys, const float *values, int64_t n,
                    float scale, float *scores, float *y)
{
    switch (dim / WIDE) {
        HEAD(1) HEAD(2) HEAD(4) HEAD(8) HEAD(16)
    }
    return 0;
}

/* Whether heads of this size can be computed. */
int64_t has_head(int64_t dim)
{
    float q[16 * WIDE] = {0}, scores[WIDE];
    return dim % WIDE == 0 && dim <= 16 * WIDE && attended(dim, q, q, q, 1, 1.0f, scores, q);
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Scratch memory of a call, cut into arrays. */
typedef struct {
    float *x;        /* [rows][width] */
    float *wide;     /* [rows][widest product] */
    float *turned;   /* [largest input][rows] */
    float *attended; /* [rows][heads * dim] */
    float *scores;
    int64_t widest;
} Scratch;

/* Cuts `memory`, or only counts the numbers that it must have.
 * `columns`, `inputs`: the widest product beyond the layers' own, and the most inputs of one. */
static int64_t cut(const Stack *s, int64_t columns, int64_t inputs, int64_t positions,
                   float *memory, Scratch *c)
{
    const int64_t qkv = padded((s->heads + 2 * s->kv_heads) * s->dim);
    const int64_t most = larger(larger(s->width, s->inner), larger(s->heads * s->dim, inputs));
    const int64_t widest = larger(larger(qkv, padded(2 * s->inner)), padded(columns));
    const int64_t sizes[] = {MOST * s->width, MOST * widest, MOST * most, MOST * s->heads * s->dim,
                             padded(positions)};
    int64_t begin[5], used = 0;
    for (int i = 0; i < 5; i++) {
        begin[i] = used;
        used += padded(sizes[i]);
    }
    if (memory)
        *c = (Scratch){memory + begin[0], memory + begin[1], memory + begin[2],
                       memory + begin[3], memory + begin[4], widest};
    return used;
}

/* One layer for one position of each row. keys[r], values[r]: the row's [kv_heads][length][dim],
 * with `at[r]` positions before this one. */
static void run_layer(const Stack *s, const Layer *w, int rows, float *const *keys,
                      float *const *values, const int64_t *at, int64_t length, Scratch *c)
{
    const int64_t heads = s->heads, kv = s->kv_heads, dim = s->dim, width = s->width;
    const int64_t group = heads / kv;
    norm(rows, c->x, w->norm1, width, s->eps, c->turned);
    product(rows, c->turned, w->qkv, width, padded((heads + 2 * kv) * dim), c->wide, c->widest, 0);
    for (int r = 0; r < rows; r++) {
        float *q = c->wide + r * c->widest, *k = q + heads * dim, *v = k + kv * dim;
        rotate(q, heads + kv, dim, s->cos + at[r] * dim, s->sin + at[r] * dim);
        for (int64_t h = 0; h < kv; h++) {
            float *seen_k = keys[r] + h * length * dim, *seen_v = values[r] + h * length * dim;
            memcpy(seen_k + at[r] * dim, k + h * dim, sizeof(float) * (size_t)dim);
            memcpy(seen_v + at[r] * dim, v + h * dim, sizeof(float) * (size_t)dim);
            for (int64_t g = h * group; g < (h + 1) * group; g++)
                attended(dim, q + g * dim, seen_k, seen_v, at[r] + 1, s->scale, c->scores,
                         c->attended + (r * heads + g) * dim);
        }
    }
    turn(rows, c->attended, heads * dim, heads * dim, c->turned);
    product(rows, c->turned, w->out, heads * dim, width, c->x, width, 1);
    norm(rows, c->x, w->norm2, width, s->eps, c->turned);
    product(rows, c->turned, w->gate_up, width, padded(2 * s->inner), c->wide, c->widest, 0);
    gate(rows, c->wide, c->widest, s->inner, c->turned);
    product(rows, c->turned, w->down, s->inner, width, c->x, width, 1);
}

#endif
