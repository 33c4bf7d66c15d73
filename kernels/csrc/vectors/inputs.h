/* Inputs of products, as a level multiplies them: bfloat16 pairs where it can (HAS_PAIRS), else float32.

   `numbers` are NUMBERS neighbouring columns of a row, of small integers or of inputs, all exact. */

#ifndef PENSTOCK_INPUTS_H
#define PENSTOCK_INPUTS_H

#include "vectors.h"

#define AT_ONCE (REGISTERS / 2)     /* registers with sums that leave room for all else */
#define MOST_TOKENS (REGISTERS / 4) /* rows of inputs in one pass over a matrix, where all is in registers */

/* CASE(T) for each number of rows in one pass. */
#if REGISTERS == 32
#define CASES(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#else
#define CASES(CASE) CASE(1) CASE(2) CASE(3) CASE(4)
#endif

#ifdef HAS_PAIRS

typedef uint16_t input;
typedef word_part numbers;
#define NUMBERS (2 * LANES)

INLINE numbers n_load_inputs(const input *from) { return part_load_words(from); }

INLINE numbers n_load_signed_bytes(const void *from)
{
    const floats low = w_to_floats(w_load_signed_bytes(from));
    const floats high = w_to_floats(w_load_signed_bytes((const char *)from + LANES));
    return part_pairs_of(low.p[0], high.p[0]);
}

#define NUMBERS_PARTS 1

/* Adds the products of all columns, divided between the lanes of one register; or those of one part of them. */
INLINE float_part n_dot(float_part sum, numbers a, numbers b) { return part_dot_pairs(sum, a, b); }
INLINE float_part n_dot_part(float_part sum, numbers a, numbers b, int part) { return (void)part, n_dot(sum, a, b); }

/* Stores the nearest bfloat16 of the first `count` numbers. A subnormal one may become zero. */
INLINE void f_store_near(uint16_t *to, floats a, long count)
{
    const __mmask16 mask = count >= LANES ? 0xffff : (__mmask16)((1 << count) - 1);
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh((__m512)a.p[0]));
}

/* The nearest bfloat16 numbers, in the lower and the upper half of each lane. A subnormal one may become zero. */
INLINE words f_to_pairs(floats low, floats high)
{
    uint16_t order[2 * LANES];
    for (int i = 0; i < 2 * LANES; i++)
        order[i] = (uint16_t)(i / 2 + i % 2 * LANES);
    return (words){{part_lookup_halves(part_load_words(order), part_pairs_of(low.p[0], high.p[0]))}};
}

#else

typedef float input;
typedef floats numbers;
#define NUMBERS LANES

INLINE numbers n_load_inputs(const input *from) { return f_load(from); }
INLINE numbers n_load_signed_bytes(const void *from) { return w_to_floats(w_load_signed_bytes(from)); }

#define NUMBERS_PARTS PARTS

INLINE float_part n_dot_part(float_part sum, numbers a, numbers b, const int part)
{
    return part_fma(a.p[part], b.p[part], sum);
}

INLINE float_part n_dot(float_part sum, numbers a, numbers b)
{
#define N_DOT_PART(I) sum = part_fma(a.p[I], b.p[I], sum);
    EACH_PART(N_DOT_PART)
    return sum;
}

/* Stores the nearest bfloat16 of the first `count` numbers. */
INLINE void f_store_near(uint16_t *to, floats a, long count) { f_store_brief(to, a, count); }

/* The nearest bfloat16 numbers, in the lower and the upper half of each lane. */
INLINE words f_to_pairs(floats low, floats high) { return w_or(w_shr(f_brief(low), 16), f_brief(high)); }

#endif

/* One row of `k` inputs, with zeros up to `wide`, a multiple of 32. */
static APART void prepare_inputs(const uint16_t *x, long k, long wide, input *to)
{
#ifdef HAS_PAIRS
    memcpy(to, x, 2 * (size_t)k);
#else
    long i = 0;
    for (; i + LANES <= k; i += LANES)
        f_store(to + i, f_load_brief(x + i));
    for (; i < k; i++) {
        const uint32_t bits = (uint32_t)x[i] << 16;
        memcpy(to + i, &bits, sizeof bits);
    }
#endif
    memset(to + k, 0, (size_t)(wide - k) * sizeof *to);
}

/* sums[g]: the sum of group g of a prepared row. `group` is a multiple of 32. */
static APART void sum_inputs(const input *x, long wide, long group, float *sums)
{
#ifdef HAS_PAIRS
    const numbers ones = (numbers)w_all(0x3f803f80).p[0];
#else
    const numbers ones = f_all(1);
#endif
    for (long at = 0; at < wide; at += group) {
        float_part sum = {0};
        for (long j = at; j < at + group; j += NUMBERS)
            sum = n_dot(sum, n_load_inputs(x + j), ones);
        sums[at / group] = part_sum(sum);
    }
}

/* Sixteen rows of 32 bfloat16 numbers in words, at most `rows` rows and `columns` columns of them, to `out` with rows of
   k numbers. */
INLINE void store_rows(const words row[LANES], uint16_t *out, long k, long rows, long columns)
{
    if (rows >= LANES && columns >= 32) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            w_store(out + i * k, row[i]);
    } else
        for (int i = 0; i < LANES && i < rows; i++)
            memcpy(out + i * k, &row[i], 2 * (size_t)(columns < 32 ? columns : 32));
}

INLINE long fewer(long a, long b) { return a < b ? a : b; }

INLINE long whole_multiple(long a, long of) { return (a + of - 1) / of * of; }

#endif
