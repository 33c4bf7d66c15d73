/* 4-bit numbers with scales and zeros of least squared error: the steps of formats/quantise.py, sixteen rows at a
   time. */

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include "lanes.h"

#define LARGEST 128 /* the most columns in a group */

struct group {
    long columns;
    float weights[LARGEST]; /* weight of each column */
    float x[LARGEST][LANES]; /* one number of each row */
    __m512 count, total; /* sums over the columns: weights, weights * x */
};

struct line { /* a weight is number * scale + zero */
    __m512 scale, zero;
};

INLINE __m512 rounded(__m512 numbers)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(numbers)), 16));
}

INLINE __m512 inverse(__m512 scale)
{
    const __mmask16 usable = _mm512_cmp_ps_mask(scale, _mm512_set1_ps(1.17549435e-38f), _CMP_GE_OQ);
    return _mm512_maskz_div_ps(usable, _mm512_set1_ps(1), scale);
}

INLINE __m512 nearest(__m512 x, __m512 zero, __m512 over_scale)
{
    const __m512 number = _mm512_roundscale_ps(_mm512_mul_ps(_mm512_sub_ps(x, zero), over_scale), 0);
    return _mm512_min_ps(_mm512_max_ps(number, _mm512_set1_ps(-8)), _mm512_set1_ps(7));
}

INLINE struct line improved(const struct group *group, struct line line)
{
    const __m512 over_scale = inverse(line.scale);
    __m512 total = _mm512_setzero_ps(), squares = total, common = total;
    for (long j = 0; j < group->columns; j++) {
        const __m512 x = _mm512_loadu_ps(group->x[j]), number = nearest(x, line.zero, over_scale);
        const __m512 counted = _mm512_mul_ps(number, _mm512_set1_ps(group->weights[j]));
        total = _mm512_add_ps(total, counted);
        squares = _mm512_fmadd_ps(counted, number, squares);
        common = _mm512_fmadd_ps(counted, x, common);
    }
    const __m512 all = _mm512_mul_ps(group->count, squares);
    const __m512 spread = _mm512_fnmadd_ps(total, total, all);
    const __m512 slope = _mm512_fnmadd_ps(total, group->total, _mm512_mul_ps(group->count, common));
    const __mmask16 differ = _mm512_cmp_ps_mask(spread, _mm512_mul_ps(all, _mm512_set1_ps(1e-5f)), _CMP_GT_OQ);
    const __m512 scale = rounded(_mm512_mask_div_ps(line.scale, differ, slope, spread));
    const __m512 rest = _mm512_fnmadd_ps(scale, total, group->total);
    return (struct line){scale, rounded(_mm512_div_ps(rest, group->count))};
}

INLINE __m512 error_of(const struct group *group, struct line line)
{
    const __m512 over_scale = inverse(line.scale);
    __m512 error = _mm512_setzero_ps();
    for (long j = 0; j < group->columns; j++) {
        const __m512 x = _mm512_loadu_ps(group->x[j]), number = nearest(x, line.zero, over_scale);
        const __m512 off = _mm512_sub_ps(_mm512_fmadd_ps(number, line.scale, line.zero), x);
        error = _mm512_fmadd_ps(_mm512_mul_ps(off, off), _mm512_set1_ps(group->weights[j]), error);
    }
    return error;
}

/* Columns from `first` of `rows` rows of x [.., k]. Missing rows and columns equal the last ones. */
TARGET static void fill(struct group *group, const float *x, const float *weights, long rows, long k, long first)
{
    group->count = group->total = _mm512_setzero_ps();
    for (long j = 0; j < group->columns; j++) {
        const long column = first + j < k ? first + j : k - 1;
        for (long row = 0; row < LANES; row++)
            group->x[j][row] = x[(row < rows ? row : rows - 1) * k + column];
        group->weights[j] = weights[first + j];
        const __m512 weight = _mm512_set1_ps(group->weights[j]);
        group->count = _mm512_add_ps(group->count, weight);
        group->total = _mm512_fmadd_ps(weight, _mm512_loadu_ps(group->x[j]), group->total);
    }
}

TARGET static struct line best_line(const struct group *group, const float *widths, int starts, int rounds)
{
    __m512 low = _mm512_loadu_ps(group->x[0]), high = low;
    for (long j = 1; j < group->columns; j++) {
        low = _mm512_min_ps(low, _mm512_loadu_ps(group->x[j]));
        high = _mm512_max_ps(high, _mm512_loadu_ps(group->x[j]));
    }
    const __m512 halved = _mm512_set1_ps(0.5f);
    const __m512 middle = _mm512_fmadd_ps(low, halved, _mm512_mul_ps(high, halved));
    const __m512 half = _mm512_fnmadd_ps(low, halved, _mm512_mul_ps(high, halved));
    struct line best = {middle, middle};
    __m512 least = _mm512_set1_ps(__builtin_nanf(""));
    for (int start = 0; start < starts; start++) {
        struct line line;
        line.scale = _mm512_mul_ps(half, _mm512_set1_ps(2 * widths[start] / 15));
        line.zero = _mm512_fmadd_ps(line.scale, halved, middle);
        for (int round = 0; round < rounds; round++)
            line = improved(group, line);
        const __m512 error = error_of(group, line);
        const __mmask16 better = _mm512_cmp_ps_mask(error, least, _CMP_NGE_UQ); /* also true if `least` is NaN */
        best.scale = _mm512_mask_mov_ps(best.scale, better, line.scale);
        best.zero = _mm512_mask_mov_ps(best.zero, better, line.zero);
        least = _mm512_mask_mov_ps(least, better, error);
    }
    return best;
}

TARGET static void store(const struct group *group, struct line line, uint8_t *numbers, uint16_t *scales,
                         uint16_t *zeros, long rows, long whole, long groups)
{
    const __m512 over_scale = inverse(line.scale);
    uint16_t scale[LANES], zero[LANES];
    _mm256_storeu_si256((__m256i *)scale, (__m256i)_mm512_cvtneps_pbh(line.scale));
    _mm256_storeu_si256((__m256i *)zero, (__m256i)_mm512_cvtneps_pbh(line.zero));
    for (long row = 0; row < rows; row++) {
        scales[row * groups] = scale[row];
        zeros[row * groups] = zero[row];
    }
    for (long j = 0; j < group->columns; j++) {
        const __m512 number = nearest(_mm512_loadu_ps(group->x[j]), line.zero, over_scale);
        const __m512i shifted = _mm512_add_epi32(_mm512_cvtps_epi32(number), _mm512_set1_epi32(8));
        uint8_t bytes[LANES];
        _mm_storeu_si128((__m128i *)bytes, _mm512_cvtepi32_epi8(shifted));
        for (long row = 0; row < rows; row++)
            numbers[row * whole + j] = bytes[row];
    }
}

/* One group of columns, from `first`, of `rows` rows. */
TARGET static void quantise(const float *x, const float *weights, uint8_t *numbers, uint16_t *scales, uint16_t *zeros,
                            long rows, long k, long whole, long width, long first, const float *widths, int starts,
                            int rounds)
{
    struct group group = {.columns = width};
    fill(&group, x, weights, rows, k, first);
    store(&group, best_line(&group, widths, starts, rounds), numbers, scales, zeros, rows, whole, whole / width);
}

/* x [rows, k]; weights [columns], where columns is k padded to a multiple of `group`; numbers [rows, columns],
   scales and zeros [rows, columns / group]. `starts` ranges, shares `widths` of the full one, are tried and refined
   `rounds` times.
   Takes: arrays of the sizes above, with any bits, group <= LARGEST. Refuses nothing: quantise.py does. */
void penstock_quantise_int4(const float *x, const float *weights, uint8_t *numbers, uint16_t *scales, uint16_t *zeros,
                            long rows, long k, long group, const float *widths, int starts, int rounds, int threads)
{
    const long groups = (k + group - 1) / group, strips = (rows + LANES - 1) / LANES, whole = groups * group;
#pragma omp parallel for num_threads(threads)
    for (long piece = 0; piece < strips * groups; piece++) {
        const long row = piece / groups * LANES, at = piece % groups;
        quantise(x + row * k, weights, numbers + row * whole + at * group, scales + row * groups + at,
                 zeros + row * groups + at, rows - row < LANES ? rows - row : LANES, k, whole, group, at * group,
                 widths, starts, rounds);
    }
}

#endif
