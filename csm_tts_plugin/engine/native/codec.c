/* A causal convolution of the codec's decoder with memory, on a CPU in float32, for `codec.py`.
 *
 * A transposed convolution is the same with several outputs per position. The sum of an output has
 * the same order whatever the number of positions and rows, so that any split of an utterance into
 * calls gives the same samples. */
#include "vectors.h"

typedef struct {
    int64_t taps, in, out;  /* numbers per position; out is padded to whole registers in `weight` */
    int64_t memory;         /* positions before the first one that are looked at */
    int64_t activated;      /* whether an ELU comes first */
    const int64_t *offsets; /* [taps], the padded position at which each tap looks first */
    const float
        *weight; /* panels [taps][in][PANEL], the last one [taps][in][WIDE] if that is enough */
    const float *bias; /* [out], padded to whole registers */
} Conv;

INLINE void put(float *y, vec x, int64_t columns, int add)
{
    if (columns >= WIDE) {
        if (add)
            x += *(vec *)y;
        *(vec *)y = x;
        return;
    }
    float some[WIDE];
    memcpy(some, &x, sizeof some);
    for (int64_t i = 0; i < columns; i++)
        y[i] = add ? y[i] + some[i] : some[i];
}

/* `rows` positions with inputs at x[r] -> outputs at y[r], for `vecs` registers of columns. */
INLINE void cell(const int rows, const int vecs, const Conv *c, const float *const *x,
                 const float *w, const float *bias, float *const *y, int64_t columns, int add)
{
    vec sum[MOST * 2];
#pragma GCC unroll 32
    for (int i = 0; i < rows * vecs; i++)
        sum[i] = *(const vec *)(bias + i % vecs * WIDE);
    for (int64_t tap = 0; tap < c->taps; tap++) {
        const float *from[MOST];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            from[r] = x[r] + c->offsets[tap] * c->in;
        for (int64_t k = 0; k < c->in; k++, w += vecs * WIDE) {
            vec one[vecs];
#pragma GCC unroll 2
            for (int v = 0; v < vecs; v++) {
                one[v] = *(const vec *)(w + v * WIDE);
                __builtin_prefetch(w + (AHEAD * vecs + v) * WIDE);
            }
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
                for (int v = 0; v < vecs; v++)
                    sum[r * vecs + v] += from[r][k] * one[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vecs; v++)
            put(y[r] + v * WIDE, sum[r * vecs + v], columns - v * WIDE, add);
}

#define CELL(R)                                         \
    case R:                                             \
        if (vecs == 2)                                  \
            cell(R, 2, c, x, w, bias, y, columns, add); \
        else                                            \
            cell(R, 1, c, x, w, bias, y, columns, add); \
        return;

static void some_cell(int rows, int vecs, const Conv *c, const float *const *x, const float *w,
                      const float *bias, float *const *y, int64_t columns, int add)
{
    switch (rows) {
        CELL(1)
        CELL(2)
        CELL(3)
        CELL(4)
#if MOST > 4
        CELL(5)
        CELL(6)
        CELL(7)
        CELL(8)
#endif
    }
}

static void elu(const float *x, float *y, int64_t n)
{
    int64_t i = 0;
    for (; i + WIDE <= n; i += WIDE) {
        const vec v = *(const vec *)(x + i);
        const ints above = v > 0.0f;
        const vec low = power(v) - 1.0f;
        *(vec *)(y + i) = (vec)(((ints)v & above) | ((ints)low & ~above));
    }
    for (; i < n; i++) {
        const vec v = (vec){0} + x[i];
        y[i] = x[i] > 0.0f ? x[i] : (power(v) - 1.0f)[0];
    }
}

/* Numbers of scratch memory that a call needs. */
int64_t conv_scratch(const Conv *c, int64_t batch, int64_t length)
{
    return batch * (c->memory + length) * c->in;
}

/* x [batch][length][in] and before it past [rows][memory][in], which is updated -> `memory`, the
 * inputs of all rows one after the other. */
void conv_fill(const Conv *c, int64_t batch, int64_t length, const int64_t *rows, const float *x,
               float *past, float *memory)
{
    const int64_t kept = c->memory * c->in, fresh = length * c->in;
    for (int64_t b = 0; b < batch; b++) {
        float *here = memory + b * (kept + fresh);
        if (c->activated)
            elu(x + b * fresh, here + kept, fresh);
        else
            memcpy(here + kept, x + b * fresh, sizeof(float) * (size_t)fresh);
        if (!kept)
            continue;
        float *before = past + rows[b] * kept;
        memcpy(here, before, sizeof(float) * (size_t)kept);
        memcpy(before, here + fresh, sizeof(float) * (size_t)kept);
    }
}

/* What `conv_fill` prepared -> y [batch][length][out], or added to it. */
void conv_product(const Conv *c, int64_t batch, int64_t length, const float *memory, float *y,
                  int64_t add)
{
    const int64_t positions = batch * length, area = c->taps * c->in;
    int64_t tiles = (positions + MOST - 1) / MOST, most = (positions + tiles - 1) / tiles;
    for (int64_t column = 0; column < c->out; column += PANEL) {
        const int64_t columns = c->out - column < PANEL ? c->out - column : PANEL;
        const float *w = c->weight + column * area;
        for (int64_t p = 0; p < positions; p += most) {
            const float *from[MOST];
            float *to[MOST];
            const int some = (int)(positions - p < most ? positions - p : most);
            for (int r = 0; r < some; r++) {
                const int64_t b = (p + r) / length, t = (p + r) % length;
                from[r] = memory + (b * (c->memory + length) + t) * c->in;
                to[r] = y + (p + r) * c->out + column;
            }
            some_cell(some, columns > WIDE ? 2 : 1, c, from, w, c->bias + column, to, columns,
                      (int)add);
        }
    }
}
