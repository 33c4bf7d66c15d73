/* The exponential function. */

#ifndef PENSTOCK_EXPONENTIAL_H
#define PENSTOCK_EXPONENTIAL_H

#include "vectors.h"

/* exp to a relative error of 2e-7: 0 below -87, that of 88 above 88. NaN stays what it is. */
INLINE floats f_exp(floats x)
{
    static const float factors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
    const floats in = f_min(f_max(x, f_all(-87)), f_all(88));
    const floats whole = f_round(f_mul(in, f_all(1.44269504f)));
    const floats near = f_fma(whole, f_all(-0.693145752f), in), r = f_fma(whole, f_all(-1.42860677e-6f), near);
    floats p = f_all(1.0f / 5040);
    for (int i = 0; i < 7; i++)
        p = f_fma(p, r, f_all(factors[i]));
    const floats power = f_mul(p, w_bits(w_shl(w_add(f_to_words(whole), w_all(127)), 23)));
    const floats found = w_bits(w_and(f_at_least(x, f_all(-87)), f_bits(power)));
    return f_choose(f_differs(x, x), x, found);
}

#endif
