/* The sum of some rows times a weight each, rounded as torch rounds bfloat16: after every product and every addition. */

#include <stdint.h>

static inline float widened(uint16_t number)
{
    const union { uint32_t bits; float number; } wide = {(uint32_t)number << 16};
    return wide.number;
}

/* To the nearest, ties to even. Unlike the processor's own conversion it keeps subnormal numbers. */
static inline uint16_t rounded(float number)
{
    const union { float number; uint32_t bits; } wide = {number};
    return number != number ? 0x7fc0 : (uint16_t)((wide.bits + 0x7fff + ((wide.bits >> 16) & 1)) >> 16);
}

/* out[j] = ((0 + x[0][j] * weights[0]) + x[1][j] * weights[1]) + ... for j < n, all of bfloat16 but the weights. */
void penstock_weighted_sum(long count, const uint64_t *x, const float *weights, uint16_t *out, long n)
{
    for (long j = 0; j < n; j++)
        out[j] = 0;
    for (long i = 0; i < count; i++) {
        const uint16_t *row = (const uint16_t *)x[i];
        for (long j = 0; j < n; j++)
            out[j] = rounded(widened(out[j]) + widened(rounded(widened(row[j]) * weights[i])));
    }
}
