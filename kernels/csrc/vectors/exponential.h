/* The exponential function. */

#ifndef PENSTOCK_EXPONENTIAL_H
#define PENSTOCK_EXPONENTIAL_H

#include "vectors.h"

/* exp to a relative error of 2e-7: 0 below -87, at most that of 88. NaN stays NaN. */
INLINE floats f_exp(floats x)
{
    static const float factors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
#ifdef HAS_POWERS
    const float lowest = -200;
#else
    const float lowest = -87;
#endif
    const floats in = f_min(f_all(88), f_max(f_all(lowest), x));
    const floats whole = f_round(f_mul(in, f_all(1.44269504f)));
    const floats near = f_fma(whole, f_all(-0.693145752f), in), r = f_fma(whole, f_all(-1.42860677e-6f), near);
    floats p = f_all(1.0f / 5040);
    for (int i = 0; i < 7; i++)
        p = f_fma(p, r, f_all(factors[i]));
#ifdef HAS_POWERS
    return f_times_power(p, whole);
#else
    const floats power = f_mul(p, w_bits(w_shl(w_add(f_to_words(whole), w_all(127)), 23)));
    return f_choose(f_less(x, f_all(lowest)), f_all(0), power);
#endif
}

#endif
