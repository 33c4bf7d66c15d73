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

/* exp as torch's flash attention computes it where the result becomes bfloat16: to a relative error of 2e-4, of numbers
   up to 88, the same bits at every level. 0 below -87.3. The number's exponent and a polynomial are the result's bits. */
INLINE floats f_exp_brief(floats x)
{
    const floats power = f_mul(x, f_all(1.44269502f)), part = f_sub(power, f_floor(power));
    floats p = f_fma_once(part, f_all(-0.079204240219773236f), f_all(-0.22433836478672356f));
    p = f_fma_once(part, p, f_all(0.30354260500649682f));
    p = f_fma_once(part, p, f_all(0.00010703434948458272f));
    const floats bits = f_fma_once(f_sub(power, p), f_all(8388608), f_all(1065353216));
    const words tiny = f_less(x, f_all(-87.33654785f));
    return w_bits(w_choose(tiny, w_all(0), f_to_words(bits)));
}

#endif
