/* Rotary positions of the heads of one token, rounded where torch's operations round: both products, then their sum. */

#include "../vectors/vectors.h"

INLINE floats rotary_product(const uint16_t *x, const uint16_t *by, long count)
{
    return w_bits(f_brief(f_mul(f_load_some_brief(x, count), f_load_some_brief(by, count))));
}

/* out [heads, dim] of heads [heads, dim], all of bfloat16: each number times its cosine, and the other half of the head,
   the upper one negated, times the sines. `cosines` and `sines` are [dim].
   Takes: any bits; dim, a multiple of two. Refuses nothing: kernels/modules/rotary.py calls it so. */
void EXPORT(rotate)(const uint16_t *heads, long count, const uint16_t *cosines, const uint16_t *sines, uint16_t *out,
                    long dim)
{
    const long half = dim / 2;
    for (long head = 0; head < count; head++, heads += dim, out += dim)
        for (long at = 0; at < half; at += LANES) {
            const long there = half - at < LANES ? half - at : LANES;
            const uint16_t *low = heads + at, *high = heads + half + at;
            f_store_brief(out + at,
                          f_sub(rotary_product(low, cosines + at, there), rotary_product(high, sines + at, there)), there);
            f_store_brief(out + half + at,
                          f_add(rotary_product(high, cosines + half + at, there),
                                rotary_product(low, sines + half + at, there)),
                          there);
        }
}
