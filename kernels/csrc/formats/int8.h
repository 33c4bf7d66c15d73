/* Products of a few rows with several int8 matrices in one call, and decoding of such matrices.

   A matrix has numbers [n, k], one scale for each row. Numbers become float32, or bfloat16 pairs, in registers, where
   they are exact. The scale is applied to the sum. So each byte of the matrix is read once for up to MOST_TOKENS rows of
   inputs. */

#include "../bfloat16.h"
#include "../vectors/inputs.h"

#define INT8_HIGHEST 8 /* the most rows of a matrix at a time */
#define INT8_PIECE 64  /* rows of a matrix that a thread takes at a time */
/* Inputs that several rows of a matrix meet: they stay in the first cache. */
#define INT8_SPAN (16384 / (long)sizeof(input))
#define LINE 64

typedef float_part int8_sums[MOST_TOKENS]; /* of one row of a matrix, with each row of inputs */

/* Rows of a matrix at a time: as many as keep all sums in registers. */
#define INT8_ROWS(T) (8 * T <= AT_ONCE ? 8 : 4 * T <= AT_ONCE ? 4 : 2 * T <= AT_ONCE ? 2 : 1)

/* Adds the products of NUMBERS columns to sum [tokens][high]. Rows of w are `k` bytes apart, those of x `wide`. */
INLINE void int8_step(const int tokens, const int high, const int8_t *w, long k, const input *x, long wide,
                      float_part sum[MOST_TOKENS][INT8_HIGHEST])
{
    /* Of the numbers of one row, or of one input, only what is multiplied next is in registers. */
#pragma GCC unroll 4
    for (int part = 0; part < NUMBERS_PARTS; part++)
        if (high < tokens || NUMBERS_PARTS == 1) {
            numbers row[INT8_HIGHEST];
#pragma GCC unroll 8
            for (int r = 0; r < high; r++)
                row[r] = n_load_signed_bytes(w + r * k);
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
                for (int r = 0; r < high; r++)
                    sum[t][r] = n_dot_part(sum[t][r], n_load_inputs(x + t * wide), row[r], part);
        } else {
            numbers from[MOST_TOKENS];
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++)
                from[t] = n_load_inputs(x + t * wide);
#pragma GCC unroll 8
            for (int r = 0; r < high; r++) {
                const numbers row = n_load_signed_bytes(w + r * k);
#pragma GCC unroll 8
                for (int t = 0; t < tokens; t++)
                    sum[t][r] = n_dot_part(sum[t][r], from[t], row, part);
            }
        }
}

/* Adds to the sums of `high` rows of w [.., k] the products of columns `from` to `to`. */
INLINE void int8_multiply(const int tokens, const int high, const int8_t *w, long k, const input *x, long wide,
                          long from, long to, int8_sums *sums)
{
    float_part sum[MOST_TOKENS][INT8_HIGHEST];
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
        for (int r = 0; r < high; r++)
            sum[t][r] = sums[r][t];
    long at = from;
    for (; at + LINE <= to; at += LINE) {
        for (int r = 0; r < high; r++)
            __builtin_prefetch(w + (r + high) * k + at, 0, 2);
#pragma GCC unroll 4
        for (int i = 0; i < LINE; i += NUMBERS)
            int8_step(tokens, high, w + at + i, k, x + at + i, wide, sum);
    }
    for (; at < to; at += NUMBERS) {
        int8_t last[INT8_HIGHEST][NUMBERS] = {{0}};
        for (int r = 0; r < high; r++)
            memcpy(last[r], w + r * k + at, (size_t)fewer(NUMBERS, to - at));
        int8_step(tokens, high, last[0], NUMBERS, x + at, wide, sum);
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
        for (int r = 0; r < high; r++)
            sums[r][t] = sum[t][r];
}

#define CASE(T)                                                                                                        \
    case T: {                                                                                                          \
        long r = 0;                                                                                                    \
        for (; r + INT8_ROWS(T) <= there; r += INT8_ROWS(T))                                                           \
            int8_multiply(T, INT8_ROWS(T), w + r * k, k, x, wide, from, to, sums + r);                                 \
        for (; r < there; r++)                                                                                         \
            int8_multiply(T, 1, w + r * k, k, x, wide, from, to, sums + r);                                            \
        break;                                                                                                         \
    }

/* x [tokens, wide] times `there` rows of w [.., k], at most INT8_PIECE, into out [tokens, n]. */
static APART void int8_piece(int tokens, const int8_t *w, const uint16_t *scales, const input *x, long wide,
                             uint16_t *out, long n, long k, long there)
{
    const long span = INT8_SPAN / tokens / LINE * LINE;
    int8_sums sums[INT8_PIECE];
    for (long r = 0; r < there; r++)
        for (int t = 0; t < tokens; t++)
            sums[r][t] = (float_part){0};
    for (long from = 0; from < k; from += span) {
        const long to = fewer(k, from + span);
        switch (tokens) {
            CASES(CASE)
        }
    }
    for (long r = 0; r < there; r++)
        for (int t = 0; t < tokens; t++)
            out[t * n + r] = rounded(part_sum(sums[r][t]) * widened(scales[r]));
}
#undef CASE

/* For each i < count: out[i] [tokens, n] = x[i] [tokens, k] times the transpose of w[i], all contiguous. `room` has
   4 bytes for each input, of k rounded up to a multiple of 32. `threads` threads of torch's OpenMP runtime share the
   pieces.
   Takes: matrices as long as Int8.lengths(n, k), with any bytes: `locate` in planes.py refuses others. */
void EXPORT(products_int8)(long count, const uint64_t *w, const uint64_t *x, const uint64_t *out, long tokens, long n,
                           long k, void *room, int threads)
{
    const long pieces = (n + INT8_PIECE - 1) / INT8_PIECE, wide = whole_multiple(k, 32);
    input *prepared = room;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (long row = 0; row < count * tokens; row++)
            prepare_inputs((const uint16_t *)x[row / tokens] + row % tokens * k, k, wide, prepared + row * wide);
#pragma omp for schedule(guided)
        for (long number = 0; number < count * pieces; number++) {
            const long i = number / pieces, first = number % pieces * INT8_PIECE;
            const int8_t *matrix = (const int8_t *)w[i];
            const uint16_t *scales = (const uint16_t *)(matrix + whole_multiple(n * k, 64)) + first;
            for (long t = 0; t < tokens; t += MOST_TOKENS)
                int8_piece((int)fewer(MOST_TOKENS, tokens - t), matrix + first * k, scales,
                           prepared + (i * tokens + t) * wide, wide, (uint16_t *)out[i] + t * n + first, n, k,
                           fewer(INT8_PIECE, n - first));
        }
    }
}

static APART void int8_decode_row(const int8_t *row, uint16_t scale, uint16_t *out, long k)
{
    const floats factor = f_all(widened(scale));
    long at = 0;
    for (; at + LANES <= k; at += LANES)
        f_store_near(out + at, f_mul(w_to_floats(w_load_signed_bytes(row + at)), factor), LANES);
    if (at < k) {
        int8_t last[LANES] = {0};
        memcpy(last, row + at, (size_t)(k - at));
        f_store_near(out + at, f_mul(w_to_floats(w_load_signed_bytes(last)), factor), k - at);
    }
}

/* out [rows, k] bfloat16 = the rows from `first` of the matrix [n, k] at w.
   Takes: a plane as long as Int8.lengths(n, k), with any bytes, and rows inside of it: `check_decode` in
   planes.py refuses others. */
void EXPORT(decode_int8)(const void *w, void *out, long n, long k, long first, long rows, int threads)
{
    const int8_t *matrix = w;
    const uint16_t *scales = (const uint16_t *)(matrix + whole_multiple(n * k, 64));
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++)
        int8_decode_row(matrix + (first + row) * k, scales[first + row], (uint16_t *)out + row * k, k);
}

#undef LINE
