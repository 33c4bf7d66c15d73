/* Sixteen bfloat16 numbers at a time. A part of vectors.h. */

/* Sixteen bfloat16 numbers. */
INLINE floats f_load_brief(const uint16_t *from) { return w_bits(w_shl(w_load_halves(from), 16)); }

INLINE floats f_load_some_brief(const uint16_t *from, long count)
{
    return count >= LANES ? f_load_brief(from) : w_bits(w_shl(w_load_some_halves(from, count), 16));
}

/* The nearest bfloat16 numbers. NaN stays one. */
INLINE floats f_near_brief(floats a)
{
    const words bits = f_bits(a), odd = w_and(w_shr(bits, 16), w_all(1));
    const words near = w_and(w_add(w_add(bits, odd), w_all(0x7fff)), w_all((int32_t)0xffff0000));
    return f_choose(f_differs(a, a), a, w_bits(near));
}

/* `near`, or `nan` where a is NaN. */
INLINE words w_or_nan(words near, floats a, int32_t nan)
{
#if WIDTH == 64
    const __mmask16 none = _mm512_cmp_ps_mask((__m512)a.p[0], (__m512)a.p[0], _CMP_UNORD_Q);
    return (words){{(word_part)_mm512_mask_mov_epi32((__m512i)near.p[0], none, _mm512_set1_epi32(nan))}};
#else
    return w_choose(f_differs(a, a), w_all(nan), near);
#endif
}

/* The nearest bfloat16, ties to even, in the upper halves; the lower halves are zero. NaN is 0x7fc0. */
INLINE words f_brief(floats a)
{
    const words bits = f_bits(a), odd = w_and(w_shr(bits, 16), w_all(1));
    return w_or_nan(w_and(w_add(w_add(bits, odd), w_all(0x7fff)), w_all((int32_t)0xffff0000)), a, 0x7fc00000);
}

/* The nearest bfloat16 numbers; subnormal ones become zero, as with AVX-512's own conversion. */
INLINE floats f_flushed_brief(floats a)
{
    const words tiny = f_less(f_abs(a), f_all(1.17549435e-38f));
    return w_bits(w_choose(tiny, w_and(f_bits(a), w_all((int32_t)0x80000000)), f_brief(a)));
}

/* The same in the lower halves; the upper ones are zero. */
INLINE words f_brief_halves(floats a)
{
    const words bits = f_bits(a), high = w_shr(bits, 16);
    return w_or_nan(w_shr(w_add(w_add(bits, w_all(0x7fff)), w_and(high, w_all(1))), 16), a, 0x7fc0);
}

/* Stores the nearest bfloat16 of the first `count` numbers. */
INLINE void f_store_brief(uint16_t *to, floats a, long count)
{
    uint16_t some[LANES];
    const words halves = f_brief_halves(a);
    if (count >= LANES) {
        w_store_halves(to, halves);
        return;
    }
    w_store_halves(some, halves);
    memcpy(to, some, 2 * (size_t)count);
}
