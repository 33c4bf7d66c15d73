/* Products of a few rows with several int4 matrices in one call, and decoding of such matrices.

   A matrix has blocks of 64 rows. A byte of column j holds row d (low half) and row d + 32 (high half) as number + 8.
   Each group of columns has a scale and a zero for each row. Numbers become floats or bfloat16 pairs in registers,
   where they are exact. A group's scale and zero are applied to its sum. So each byte of the matrix comes from memory
   once, for up to MOST_TOKENS rows of inputs.

   A strand is a register of sums, one for each of some rows of a block. int4_strands.h says which. */

#include "../bfloat16.h"
#include "../vectors/inputs.h"

#define INT4_BLOCK 64     /* rows of a block */
#define INT4_COLUMN 32    /* bytes of one column in a block: each holds two rows */

struct int4 { /* a block of 64 rows */
    const uint8_t *bytes;     /* [whole, INT4_COLUMN] */
    const uint16_t *scales;   /* [whole / group, stride], the first 128 of each are this block's */
    long whole, group, stride; /* columns with the padding of the last group */
};

static struct int4 int4_block(const void *matrix, long number, long n, long k, long group)
{
    const long blocks = (n + INT4_BLOCK - 1) / INT4_BLOCK, whole = whole_multiple(k, group);
    const uint8_t *bytes = matrix;
    const uint16_t *scales = (const uint16_t *)(bytes + blocks * whole * INT4_COLUMN);
    return (struct int4){bytes + number * whole * INT4_COLUMN, scales + number * INT4_BLOCK * 2, whole, group,
                         blocks * INT4_BLOCK * 2};
}

#include "int4_strands.h"

/* x [tokens, whole], with sums [tokens, groups] of its groups, times `there` rows of a block, into out [tokens, n]. */
INLINE void int4_multiply(const int tokens, const int count, const struct int4 w, const input *x, const float *sums,
                          uint16_t *out, long n, long there)
{
    const long groups = w.whole / w.group;
    float_part total[MOST_TOKENS][INT4_STRANDS], scale[INT4_STRANDS], zero[INT4_STRANDS];
    for (int t = 0; t < tokens; t++)
        for (int s = 0; s < INT4_STRANDS; s++)
            total[t][s] = (float_part){0};
    for (long g = 0; g < groups; g++) {
        int4_scales(w.scales + g * w.stride, scale, zero);
        for (int line = 0; line < 4; line++)
            __builtin_prefetch(w.scales + (g + 4) * w.stride + 32 * line);
#pragma GCC unroll 16
        for (int first = 0; first < INT4_STRANDS; first += count) {
            float_part sum[MOST_TOKENS][INT4_STRANDS];
            int4_sums(tokens, count, first, w.bytes + g * w.group * INT4_COLUMN, w.group, x + g * w.group, w.whole, sum);
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++) {
                const float_part inputs = part_all(sums[t * groups + g]);
#pragma GCC unroll 16
                for (int s = 0; s < count; s++) {
                    const float_part so_far = part_fma(inputs, zero[first + s], total[t][first + s]);
                    total[t][first + s] = part_fma(sum[t][s], scale[first + s], so_far);
                }
            }
        }
    }
    for (int t = 0; t < tokens; t++) {
        float rows[INT4_BLOCK];
        int4_rows(total[t], rows);
        for (int row = 0; row < there; row += LANES)
            f_store_near(out + t * n + row, f_load(rows + row), there - row);
    }
}

#define CASE(T)                                                                                                        \
    case T:                                                                                                            \
        int4_multiply(T, INT4_COUNT(T), w, x, sums, out, n, there);                                                    \
        break;

static APART void int4_piece(int tokens, struct int4 w, const input *x, const float *sums, uint16_t *out, long n, long there)
{
    switch (tokens) {
        CASES(CASE)
    }
}
#undef CASE

/* For each i < count: out[i] [tokens, n] = x[i] [tokens, k] times the transpose of w[i], all contiguous. `room` has
   4 bytes for each input, of k rounded up to whole groups, and for each group of inputs. `threads` threads of torch's
   OpenMP runtime share the pieces.
   Takes: matrices as long as Int4.lengths(n, k), with any bytes: `locate` in planes.py refuses others. */
void EXPORT(products_int4)(long count, const uint64_t *w, const uint64_t *x, const uint64_t *out, long tokens, long n,
                           long k, long group, void *room, int threads)
{
    const long blocks = (n + INT4_BLOCK - 1) / INT4_BLOCK, whole = whole_multiple(k, group), groups = whole / group;
    float *sums = room;
    input *prepared = (input *)(sums + count * tokens * groups);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (long row = 0; row < count * tokens; row++) {
            input *to = prepared + row * whole;
            prepare_inputs((const uint16_t *)x[row / tokens] + row % tokens * k, k, whole, to);
            sum_inputs(to, whole, group, sums + row * groups);
        }
#pragma omp for schedule(guided)
        for (long number = 0; number < count * blocks; number++) {
            const long i = number / blocks, first = number % blocks * INT4_BLOCK;
            const struct int4 block = int4_block((const void *)w[i], number % blocks, n, k, group);
            for (long t = 0; t < tokens; t += MOST_TOKENS) {
                const long row = i * tokens + t;
                int4_piece((int)fewer(MOST_TOKENS, tokens - t), block, prepared + row * whole, sums + row * groups,
                           (uint16_t *)out[i] + t * n + first, n, fewer(INT4_BLOCK, n - first));
            }
        }
    }
}

/* `there` rows of a block into out [there, k]. */
static APART void int4_decode_block(struct int4 w, uint16_t *out, long k, long there)
{
    float numbers[LANES];
    for (int i = 0; i < LANES; i++)
        numbers[i] = (float)(i - 8);
    const floats table = f_load(numbers);
    for (long at = 0; at < k; at += 32) {
        const uint16_t *scales = w.scales + at / w.group * w.stride;
        for (int part = 0; part * LANES < there; part++) {
            const words both = w_load(scales + 2 * LANES * part);
            const floats scale = w_bits(w_shl(both, 16)), zero = w_bits(w_and(both, w_all((int32_t)0xffff0000)));
            words column[LANES], row[LANES];
            for (int i = 0; i < LANES; i++) {
                const uint8_t *from = w.bytes + (at + 2 * i) * INT4_COLUMN + part % 2 * LANES;
                words low = w_load_bytes(from), high = w_load_bytes(from + INT4_COLUMN);
                if (part >= 2)
                    low = w_shr(low, 4), high = w_shr(high, 4);
                column[i] = f_to_pairs(f_fma(f_lookup(low, table), scale, zero), f_fma(f_lookup(high, table), scale, zero));
            }
            w_transpose(column, row);
            store_rows(row, out + part * LANES * k + at, k, there - part * LANES, k - at);
        }
    }
}

/* out [rows, k] bfloat16 = the rows from `first`, a multiple of INT4_BLOCK, of the matrix [n, k] at w.
   Takes: a plane as long as Int4.lengths(n, k), with any bytes, and rows inside of it: `check_decode` in
   planes.py refuses others. */
void EXPORT(decode_int4)(const void *w, void *out, long n, long k, long group, long first, long rows, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row += INT4_BLOCK)
        int4_decode_block(int4_block(w, (first + row) / INT4_BLOCK, n, k, group), (uint16_t *)out + row * k, k,
                          fewer(INT4_BLOCK, rows - row));
}
