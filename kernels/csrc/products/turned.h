/* Products of a few rows with bfloat16 matrices that lie turned in memory, [k, n], as those of Conv1D.

   Columns of the matrix are in lanes. An order above 0 is oneDNN's, see pairs.h. BY_FOURS is that of torch's own loops:
   row l of the matrix goes to sum l % 4, and what is left of four rows to the first. */

#ifndef PENSTOCK_PRODUCTS_TURNED_H
#define PENSTOCK_PRODUCTS_TURNED_H

#include "bfloat16.h"

enum { BY_FOURS = -3 };

#define TURNED_COLUMNS 128 /* columns of a matrix that a thread takes at a time */
#define TURNED_ROWS 16     /* rows of it that meet the sums of some columns while these are in registers */

/* For each row of inputs and sixteen columns: four sums; or one, and that of the chunks before. */
typedef floats turned_fours[BRIEF_MOST][TURNED_COLUMNS / LANES][4];

INLINE words load_turned(const uint16_t *from, long there)
{
    return there >= LANES ? w_load_halves(from) : w_load_some_halves(from, there);
}

/* Adds `rows` rows of `there` <= LANES columns, from w on, to four sums. */
INLINE void add_by_fours(const uint16_t *w, const float *x, long n, long rows, long there, floats sums[4])
{
    floats sum[4] = {sums[0], sums[1], sums[2], sums[3]};
    long l = 0;
    for (; l + 4 <= rows; l += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            sum[i] = f_fma(w_bits(w_shl(load_turned(w + (l + i) * n, there), 16)), f_all(x[l + i]), sum[i]);
    for (; l < rows; l++)
        sum[0] = f_fma(w_bits(w_shl(load_turned(w + l * n, there), 16)), f_all(x[l]), sum[0]);
    for (int i = 0; i < 4; i++)
        sums[i] = sum[i];
}

#ifdef HAS_PAIRS
/* Adds `rows` rows of `there` <= LANES columns, from w on, to the first sum of block b. */
INLINE void add_turned_pairs(const int tokens, const uint16_t *w, const uint16_t *x, long n, long k, long rows,
                             long there, int b, turned_fours sums)
{
    float_part sum[BRIEF_MOST];
    for (int t = 0; t < tokens; t++)
        sum[t] = sums[t][b][0].p[0];
    for (long l = 0; l < rows; l += 2) {
        const int both = l + 1 < rows;
        words pair = load_turned(w + l * n, there);
        if (both)
            pair = w_or(pair, w_shl(load_turned(w + (l + 1) * n, there), 16));
        for (int t = 0; t < tokens; t++) {
            int32_t of = x[t * k + l];
            if (both)
                memcpy(&of, x + t * k + l, sizeof of);
            sum[t] = part_dot_pairs(sum[t], of - (word_part){0}, pair.p[0]);
        }
    }
    for (int t = 0; t < tokens; t++)
        sums[t][b][0].p[0] = sum[t];
}
#endif

/* Adds `rows` <= TURNED_ROWS rows of a piece, from w on, to its sums. x: the inputs of these rows. */
INLINE void add_turned_rows(const int tokens, const int order, const uint16_t *w, const uint16_t *x, long n, long k,
                            long rows, long there, turned_fours sums)
{
    float wide[BRIEF_MOST][TURNED_ROWS];
    for (int t = 0; t < tokens; t++)
        f_store(wide[t], f_load_some_brief(x + t * k, rows));
    for (int b = 0; b * LANES < there; b++) {
        for (long l = 0; b % 2 == 0 && l < rows; l++)
            __builtin_prefetch(w + (l + TURNED_ROWS) * n + b * LANES, 0, 2);
#ifdef HAS_PAIRS
        if (order != BY_FOURS) {
            add_turned_pairs(tokens, w + b * LANES, x, n, k, rows, there - b * LANES, b, sums);
            continue;
        }
#endif
        for (int t = 0; t < tokens; t++)
            add_by_fours(w + b * LANES, wide[t], n, rows, there - b * LANES, sums[t][b]);
    }
}

/* x [tokens, k] times `there` <= TURNED_COLUMNS columns of w [k, n], into out [tokens, n]. */
INLINE void multiply_turned(const int tokens, const int kind, long order, const uint16_t *w, const uint16_t *x,
                            const uint16_t *bias, uint16_t *out, long n, long k, long there)
{
    const int blocks = (int)((there + LANES - 1) / LANES);
    turned_fours sums;
    for (int t = 0; t < tokens; t++)
        for (int b = 0; b < blocks; b++)
            for (int i = 0; i < 4; i++)
                sums[t][b][i] = f_all(kind != BY_FOURS && i ? -0.0f : 0); /* -0: neutral in a sum, also for -0 */
    for (long at = 0; at < k; at += TURNED_ROWS) {
        for (int t = 0; kind != BY_FOURS && at && at % order == 0 && t < tokens; t++)
            for (int b = 0; b < blocks; b++) {
                sums[t][b][1] = f_add(sums[t][b][1], sums[t][b][0]);
                sums[t][b][0] = f_all(0);
            }
        add_turned_rows(tokens, kind, w + at * n, x + at, n, k, fewer(TURNED_ROWS, k - at), there, sums);
    }
    for (int t = 0; t < tokens; t++)
        for (int b = 0; b < blocks; b++) {
            const floats *sum = sums[t][b];
            const floats whole = kind == BY_FOURS ? f_add(f_add(f_add(sum[0], sum[1]), sum[2]), sum[3])
                                                  : f_add(sum[1], sum[0]);
            store_with_bias(out + t * n, whole, bias, b * LANES, there);
        }
}

#ifdef HAS_PAIRS
#define PAIRS_CASE(T)                                                                                                  \
    if (order > 0) {                                                                                                   \
        multiply_turned(T, 0, order, w, x, bias, out, n, k, there);                                                    \
        break;                                                                                                         \
    }
#else
#define PAIRS_CASE(T)
#endif
#define CASE(T)                                                                                                        \
    case T:                                                                                                            \
        PAIRS_CASE(T)                                                                                                  \
        multiply_turned(T, BY_FOURS, BY_FOURS, w, x, bias, out, n, k, there);                                          \
        break;

static APART void turned_piece(int tokens, long order, const uint16_t *w, const uint16_t *x, const uint16_t *bias,
                               uint16_t *out, long n, long k, long there)
{
    switch (tokens) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
    }
}
#undef CASE
#undef PAIRS_CASE

/* Whether this level has products with turned matrices in an order. */
int EXPORT(takes_turned)(long order)
{
#ifdef HAS_PAIRS
    return order > 0 || order == BY_FOURS;
#else
    return order == BY_FOURS;
#endif
}

/* As `products`, with matrices w[i] [k, n]. It needs no room.
   Takes: matrices of k * n numbers, inputs of tokens * k, with any bits, and an order that takes_turned takes: a
   multiple of TURNED_ROWS if it is oneDNN's. Refuses nothing: few_rows.py finds it for shapes that it takes. */
void EXPORT(turned_products)(long count, const uint64_t *w, const uint64_t *x, const uint64_t *out, long tokens, long n,
                             long k, long order, const uint64_t *biases, int threads)
{
    const long pieces = (n + TURNED_COLUMNS - 1) / TURNED_COLUMNS;
#pragma omp parallel for schedule(guided) num_threads(threads)
    for (long number = 0; number < count * pieces; number++) {
        const long i = number / pieces, first = number % pieces * TURNED_COLUMNS;
        turned_piece((int)tokens, order, (const uint16_t *)w[i] + first, (const uint16_t *)x[i],
                     find_bias(biases, i, first), (uint16_t *)out[i] + first, n, k, fewer(TURNED_COLUMNS, n - first));
    }
}

#undef TURNED_COLUMNS
#undef TURNED_ROWS

#endif
