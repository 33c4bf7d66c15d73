/* Products of a few rows with several bfloat16 matrices in one call, in an order of summation of torch's.

   Orders above 0 are oneDNN's, see pairs.h. The others are those of torch's own product of a row with a matrix: an
   output is a sum over blocks of columns, in a float32 number for each column of a block. They are added at last: those
   of one half to those of the other, until 8 or 4 are left, and these as the name says. Columns behind the last block
   follow in a second sum, and single ones after that. */

#ifndef PENSTOCK_PRODUCTS_BFLOAT16_H
#define PENSTOCK_PRODUCTS_BFLOAT16_H

#include "../bfloat16.h"
#include "../vectors/inputs.h"

enum { BY_HALVES = 0, BY_TURNS = -1, BY_PAIRS = -2 };

#define BRIEF_MOST 4   /* rows of inputs in one pass over the matrix */
#define BRIEF_PIECE 32 /* rows of a matrix that a thread takes at a time */
#define ROWS 8         /* rows of a matrix that meet the same part of the inputs */
#define SPAN 4096      /* inputs of that part: they stay in the first cache */
#define AHEAD 2        /* rows to prefetch ahead */

/* Columns lie in words: the first halves have the even ones, the second halves the odd ones. */
INLINE floats even_columns(words a) { return w_bits(w_shl(a, 16)); }
INLINE floats odd_columns(words a) { return w_bits(w_and(a, w_all((int32_t)0xffff0000))); }

/* One row of inputs: of each 32 columns the even ones, then the odd ones. `k` without what is left of 32. */
static APART void divide_inputs(const uint16_t *x, long k, float *to)
{
    for (long at = 0; at + 32 <= k; at += 32) {
        const words both = w_load(x + at);
        f_store(to + at, even_columns(both));
        f_store(to + at + LANES, odd_columns(both));
    }
}

/* Sums of 32 columns, in the order of lanes: the last step of a product. */
INLINE float sum_in_order(const int order, floats even, floats odd)
{
    float first[LANES], second[LANES];
    if (order == BY_HALVES)
        return f_sum(even) + f_sum(odd);
    f_store(first, even);
    f_store(second, odd);
    if (order == BY_TURNS) { /* 8 columns: four lanes of each */
        float sum = 0;
        for (int i = 0; i < 4; i++) {
            const float one = (first[i] + first[i + 8]) + (first[i + 4] + first[i + 12]);
            const float other = (second[i] + second[i + 8]) + (second[i + 4] + second[i + 12]);
            sum = i ? sum + one + other : one + other;
        }
        return sum;
    }
    for (int half = 8; half >= 2; half /= 2) /* 4 columns: two lanes of each */
        for (int i = 0; i < half; i++) {
            first[i] += first[i + half];
            second[i] += second[i + half];
        }
    return (first[0] + second[0]) + (first[1] + second[1]);
}

/* A number of a matrix that may lie at an odd address: what a lossless plane does not shorten. */
typedef uint16_t brief_anywhere __attribute__((aligned(1), may_alias));

/* Adds the columns from `at` on, which are no whole block. */
static float add_last(int order, float sum, const brief_anywhere *row, const uint16_t *x, long at, long k)
{
    const long lanes = order == BY_PAIRS ? 4 : 8;
    float last[8] = {0};
    if (at < k) {
        for (; at + 2 * lanes <= k; at += 2 * lanes)
            for (long i = 0; i < 2 * lanes; i++)
                last[i % lanes] = fused(widened(row[at + i]), widened(x[at + i]), last[i % lanes]);
        if (order == BY_TURNS) {
            float all = last[0];
            for (int i = 1; i < 8; i++)
                all += last[i];
            sum += all;
        } else if (order == BY_PAIRS)
            sum += (last[0] + last[1]) + (last[2] + last[3]);
        else {
            const float left = (last[0] + last[4]) + (last[2] + last[6]), right = (last[1] + last[5]) + (last[3] + last[7]);
            sum += left + right;
        }
    }
    for (; at < k; at++)
        sum = fused(widened(row[at]), widened(x[at]), sum);
    return sum;
}

/* Sums of one row of a matrix with each row of inputs. Number c has sixteen columns of each block: of its words c / 2,
   the even ones, or the odd ones if c is odd. */
typedef floats row_sums[BRIEF_MOST][4];

/* Adds to `count` sums, from number `first` on, the columns from `from` to `to`. */
INLINE void add_columns(const int tokens, const int block, const int first, const int count, const uint16_t *row,
                        const float *x, long k, long from, long to, row_sums sums)
{
    row_sums sum;
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 4
        for (int c = first; c < first + count; c++)
            sum[t][c] = sums[t][c];
    for (long at = from; at < to; at += block) {
        if (first == 0) {
            __builtin_prefetch(row + AHEAD * k + at, 0, 2);
            if (block == 64)
                __builtin_prefetch(row + AHEAD * k + at + 32, 0, 2);
        }
#pragma GCC unroll 4
        for (int c = first; c < first + count; c++) {
            const words both = w_load(row + at + 32 * (c / 2));
            const floats some = c % 2 ? odd_columns(both) : even_columns(both);
#pragma GCC unroll 4
            for (int t = 0; t < tokens; t++)
                sum[t][c] = f_fma(some, f_load(x + t * k + at + LANES * c), sum[t][c]);
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 4
        for (int c = first; c < first + count; c++)
            sums[t][c] = sum[t][c];
}

/* A sum with the bias of row i of the matrix, if there are any. */
INLINE float with_bias(float sum, const uint16_t *bias, long i) { return bias ? sum + widened(bias[i]) : sum; }

/* Stores sums from number `first` of `there` on, with their biases if there are any. */
INLINE void store_with_bias(uint16_t *out, floats sum, const uint16_t *bias, long first, long there)
{
    if (bias)
        sum = f_add(sum, f_load_some_brief(bias + first, there - first));
    f_store_near(out + first, sum, there - first);
}

/* x [tokens, k], of which `divided` are the whole blocks, times `there` <= ROWS rows of w [.., k], into out
   [tokens, n]. */
INLINE void multiply_rows(const int tokens, const int block, int order, const uint16_t *w, const uint16_t *x,
                          const float *divided, const uint16_t *bias, uint16_t *out, long n, long k, long there)
{
    const int all = block / LANES, count = all * tokens <= 4 ? all : tokens == 2 ? 2 : 1;
    const long span = SPAN / (tokens == 3 ? 4 : tokens), end = k / block * block;
    row_sums sums[ROWS];
    for (long i = 0; i < there; i++)
        for (int t = 0; t < tokens; t++)
            for (int c = 0; c < all; c++)
                sums[i][t][c] = f_all(0);
    for (long from = 0; from < end; from += span)
        for (long i = 0; i < there; i++)
#pragma GCC unroll 4
            for (int first = 0; first < all; first += count)
                add_columns(tokens, block, first, count, w + i * k, divided, k, from, fewer(end, from + span), sums[i]);
    for (long i = 0; i < there; i++)
        for (int t = 0; t < tokens; t++) {
            const floats *sum = sums[i][t];
            const float whole = all == 4 ? sum_in_order(order, f_add(sum[0], sum[2]), f_add(sum[1], sum[3]))
                                         : sum_in_order(order, sum[0], sum[1]);
            out[t * n + i] = rounded(with_bias(add_last(order, whole, w + i * k, x + t * k, end, k), bias, i));
        }
}

#define CASE(T)                                                                                                        \
    case T:                                                                                                            \
        if (order == BY_PAIRS)                                                                                         \
            multiply_rows(T, 32, BY_PAIRS, w, x, divided, bias, out, n, k, rows);                                      \
        else                                                                                                           \
            multiply_rows(T, 64, order, w, x, divided, bias, out, n, k, rows);                                         \
        break;

static APART void rows_piece(int tokens, int order, const uint16_t *w, const uint16_t *x, const float *divided,
                             const uint16_t *bias, uint16_t *out, long n, long k, long there)
{
    for (long i = 0; i < there; i += ROWS, w += ROWS * k, out += ROWS, bias += bias ? ROWS : 0) {
        const long rows = fewer(ROWS, there - i);
        switch (tokens) {
            CASE(1)
            CASE(2)
            CASE(3)
            CASE(4)
        }
    }
}
#undef CASE

#ifdef HAS_PAIRS
#include "pairs.h"
#endif

/* x [tokens, k] times `there` rows, at most BRIEF_PIECE, of w [.., k], into out [tokens, n], in an order. `bias` has a
   number for each of these rows, or is NULL. */
static APART void brief_piece(int tokens, long order, const uint16_t *w, const uint16_t *x, const float *divided,
                              const uint16_t *bias, uint16_t *out, long n, long k, long there)
{
#ifdef HAS_PAIRS
    if (order > 0) {
        pairs_piece(tokens, w, x, bias, out, n, k, order, there);
        return;
    }
#endif
    rows_piece(tokens, (int)order, w, x, divided, bias, out, n, k, there);
}

/* Whether this level has products in an order. */
int EXPORT(takes_order)(long order)
{
#ifdef HAS_PAIRS
    return order >= BY_PAIRS;
#else
    return BY_PAIRS <= order && order <= BY_HALVES;
#endif
}

/* The biases of the rows of matrix i from `first` on, or NULL. */
INLINE const uint16_t *find_bias(const uint64_t *biases, long i, long first)
{
    return biases ? (const uint16_t *)biases[i] + first : NULL;
}

/* For each i < count: out[i] [tokens, n] = x[i] [tokens, k] times the transpose of w[i] [n, k], all contiguous, plus
   biases[i] [n] before the one rounding; `biases` may be NULL.
   `room` has 4 bytes for each input. `threads` threads of torch's OpenMP runtime share the pieces. tokens <= BRIEF_MOST.
   Takes: matrices of n * k numbers, inputs of tokens * k, with any bits, and an order that takes_order takes: a
   multiple of 32 if it is oneDNN's. Refuses nothing: few_rows.py finds it for shapes that it takes. */
void EXPORT(products)(long count, const uint64_t *w, const uint64_t *x, const uint64_t *out, long tokens, long n, long k,
                      long order, void *room, const uint64_t *biases, int threads)
{
    const long pieces = (n + BRIEF_PIECE - 1) / BRIEF_PIECE;
    float *divided = room;
#pragma omp parallel num_threads(threads)
    {
        if (order <= 0) {
#pragma omp for
            for (long row = 0; row < count * tokens; row++)
                divide_inputs((const uint16_t *)x[row / tokens] + row % tokens * k, k, divided + row * k);
        }
#pragma omp for schedule(guided)
        for (long number = 0; number < count * pieces; number++) {
            const long i = number / pieces, first = number % pieces * BRIEF_PIECE;
            brief_piece((int)tokens, order, (const uint16_t *)w[i] + first * k, (const uint16_t *)x[i],
                        divided + i * tokens * k, find_bias(biases, i, first), (uint16_t *)out[i] + first, n, k,
                        fewer(BRIEF_PIECE, n - first));
        }
    }
}

#undef ROWS
#undef SPAN
#undef AHEAD

#endif
