/* Registers, the panels of the weights, and functions of registers, for `frame.c` and `codec.c`. */
#ifndef VECTORS_H
#define VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define WIDE 16 /* floats in a register */
#define MOST 8  /* rows: two registers of sums for each */
#else
#define WIDE 8
#define MOST 4
#endif
#define PANEL (2 * WIDE)
#define AHEAD 64 /* rows of a panel by which weights are fetched ahead of their use */
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * WIDE), aligned(4)));

static inline int64_t padded(int64_t columns) { return (columns + PANEL - 1) / PANEL * PANEL; }

INLINE float total(vec x)
{
    float sum[WIDE];
    memcpy(sum, &x, sizeof sum);
#pragma GCC unroll 4
    for (int half = WIDE / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++)
            sum[i] += sum[i + half];
    return sum[0];
}

/* e to the power of x, to 2 units in the last place; 0 below -87, NaN of NaN. */
INLINE vec power(vec x)
{
    const ints under = x < -87.3f, over = x > 88.0f; /* all bits set where it holds */
    x = (vec)(((ints)x & ~(under | over)) | ((ints)((vec){0} + 88.0f) & over));
    const vec whole = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    vec y = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vec p = 1.9875691500e-4f * y + 1.3981999507e-3f;
    p = p * y + 8.3334519073e-3f;
    p = p * y + 4.1665795894e-2f;
    p = p * y + 1.6666665459e-1f;
    p = p * y + 5.0000001201e-1f;
    p = p * y * y + y + 1.0f;
    const ints shift = (__builtin_convertvector(whole, ints) + 127) << 23;
    p = p * (vec)shift;
    return (vec)((ints)p & ~under);
}

#endif
