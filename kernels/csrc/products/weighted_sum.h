/* Weighted rows, added to other rows, rounded to bfloat16 as torch does: after every product and every sum. */

#define SHARED 32768 /* the fewest numbers that are worth several threads */

INLINE floats weighted(const uint16_t *to, const uint16_t *from, floats weight)
{
    const floats product = w_bits(f_brief(f_mul(f_load_brief(from), weight)));
    return f_add(f_load_brief(to), product);
}

static void add_span(uint16_t *to, const uint16_t *from, float number, long first, long end)
{
    const floats weight = f_all(number);
    long j = first;
    for (; j + LANES <= end; j += LANES)
        f_store_brief(to + j, weighted(to + j, from + j, weight), LANES);
    if (j < end) {
        uint16_t some[2][LANES] = {0};
        memcpy(some[0], to + j, 2 * (size_t)(end - j));
        memcpy(some[1], from + j, 2 * (size_t)(end - j));
        f_store_brief(to + j, weighted(some[0], some[1], weight), end - j);
    }
}

/* For each i < count in turn: to[rows[i]] += from[i] * weights[i], both of n bfloat16 numbers. `from` has addresses,
   `to` is contiguous. Up to `threads` threads share the columns.
   Takes: rows of n numbers, with any bits, and row numbers of `to`. Refuses nothing: weighted_sum.py made
   them. */
void EXPORT(add_weighted)(long count, const uint64_t *from, const float *weights, const int64_t *rows, uint16_t *to, long n,
                          int threads)
{
    const long parts = count * n < SHARED ? 1 : threads;
#pragma omp parallel for num_threads(threads) if (parts > 1)
    for (long part = 0; part < parts; part++)
        for (long i = 0; i < count; i++)
            add_span(to + rows[i] * n, (const uint16_t *)from[i], weights[i], n * part / parts, n * (part + 1) / parts);
}
