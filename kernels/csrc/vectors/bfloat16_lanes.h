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

/* The nearest bfloat16, ties to even, in the upper halves; the lower halves are zero. NaN is 0x7fc0. */
INLINE words f_brief(floats a)
{
    const words bits = f_bits(a), odd = w_and(w_shr(bits, 16), w_all(1));
    const words near = w_and(w_add(w_add(bits, odd), w_all(0x7fff)), w_all((int32_t)0xffff0000));
    return w_choose(f_differs(a, a), w_all(0x7fc00000), near);
}

/* The nearest bfloat16 numbers; subnormal ones become zero, as with AVX-512's own conversion. */
INLINE floats f_flushed_brief(floats a)
{
    const words tiny = f_less(f_abs(a), f_all(1.17549435e-38f));
    return w_bits(w_choose(tiny, w_and(f_bits(a), w_all((int32_t)0x80000000)), f_brief(a)));
}

/* Stores the nearest bfloat16 of the first `count` numbers. */
INLINE void f_store_brief(uint16_t *to, floats a, long count)
{
    uint16_t some[LANES];
    const words halves = w_shr(f_brief(a), 16);
    if (count >= LANES) {
        w_store_halves(to, halves);
        return;
    }
    w_store_halves(some, halves);
    memcpy(to, some, 2 * (size_t)count);
}
