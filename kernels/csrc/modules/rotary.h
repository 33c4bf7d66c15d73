/* Rotary embedding of one token: each head's numbers times the cosine, plus its halves exchanged, the second negated,
   times the sine, rounded after each of them as torch's operations round. */

#include "../bfloat16.h"
#include "../vectors/vectors.h"

INLINE floats turned(floats number, floats other, floats cosine, floats sine)
{
    const floats straight = w_bits(f_brief(f_mul(number, cosine))), crossed = w_bits(f_brief(f_mul(other, sine)));
    return f_add(straight, crossed);
}

INLINE floats negated(floats a) { return w_bits(w_xor(f_bits(a), w_all((int32_t)0x80000000))); }

/* out [heads, dim] of x [heads, dim], with cosine and sine [dim], all bfloat16. dim is twice a multiple of sixteen.
   Takes: any bits. Refuses nothing: kernels/modules/rotary.py calls it so. */
void EXPORT(rotate)(const uint16_t *x, const uint16_t *cosine, const uint16_t *sine, uint16_t *out, long heads, long dim)
{
    const long half = dim / 2;
    for (long head = 0; head < heads; head++, x += dim, out += dim)
        for (long at = 0; at < half; at += LANES) {
            const floats first = f_load_brief(x + at), second = f_load_brief(x + half + at);
            f_store_brief(out + at, turned(first, negated(second), f_load_brief(cosine + at), f_load_brief(sine + at)),
                          LANES);
            f_store_brief(out + half + at,
                          turned(second, first, f_load_brief(cosine + half + at), f_load_brief(sine + half + at)), LANES);
        }
}
