/* Weighted rows, added to other rows, rounded to bfloat16 as torch does: after every product and every sum. */

#include "bfloat16.h"

#define SHARED 32768 /* the fewest numbers that are worth several threads */

static void add_span(uint16_t *restrict to, const uint16_t *restrict from, float weight, long first, long end)
{
    for (long j = first; j < end; j++)
        to[j] = rounded(widened(to[j]) + widened(rounded(widened(from[j]) * weight)));
}

/* For each i < count in turn: to[rows[i]] += from[i] * weights[i], both of n bfloat16 numbers. `from` has addresses,
   `to` is contiguous. Up to `threads` threads share the columns.
   Takes: rows of n numbers, with any bits, and row numbers of `to`. Refuses nothing: weighted_sum.py made
   them. */
void penstock_add_weighted(long count, const uint64_t *from, const float *weights, const int64_t *rows, uint16_t *to, long n,
                           int threads)
{
    const long parts = count * n < SHARED ? 1 : threads;
#pragma omp parallel for num_threads(threads) if (parts > 1)
    for (long part = 0; part < parts; part++)
        for (long i = 0; i < count; i++)
            add_span(to + rows[i] * n, (const uint16_t *)from[i], weights[i], n * part / parts, n * (part + 1) / parts);
}
