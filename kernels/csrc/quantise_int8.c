/* 8-bit numbers with a scale for each row: the steps of formats/quantise.py, with the same bits. */

#include "unfused.h"

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include "lanes.h"

#define LEVELS 127
#define SUMS 8 /* registers of partial sums, each of every 128th column */
#define SMALLEST 1.17549435e-38f

typedef struct {
    const float *x, *weights;
    long k;
} line;

typedef struct {
    __m512 each[SUMS];
} sums;

INLINE __mmask16 columns(const line *of, long at)
{
    const long left = of->k - at;
    return left >= LANES ? 0xffff : left > 0 ? (__mmask16)((1 << left) - 1) : 0;
}

INLINE float sum_of(const sums *of)
{
    __m512 fold[SUMS];
    __builtin_memcpy(fold, of->each, sizeof fold);
    for (int half = SUMS / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            fold[i] = fold[i] + fold[i + half];
    __m512 whole = fold[0];
    whole = whole + _mm512_shuffle_f32x4(whole, whole, 0x4e);
    whole = whole + _mm512_shuffle_f32x4(whole, whole, 0xb1);
    whole = whole + _mm512_permute_ps(whole, 0x4e);
    whole = whole + _mm512_permute_ps(whole, 0xb1);
    return _mm512_cvtss_f32(whole);
}

/* Rounds to bfloat16, also if subnormal. */
INLINE float rounded(float number)
{
    union {
        float value;
        uint32_t bits;
    } both = {number};
    both.bits = (both.bits + 0x7fff + (both.bits >> 16 & 1)) & 0xffff0000;
    return both.value;
}

INLINE __m512 inverse(float scale) { return _mm512_set1_ps(scale < SMALLEST ? 0 : 1 / scale); }

INLINE __m512 nearest(__m512 x, __m512 over_scale)
{
    const __m512 number = _mm512_roundscale_ps(x * over_scale, _MM_FROUND_TO_NEAREST_INT);
    return _mm512_min_ps(_mm512_max_ps(number, _mm512_set1_ps(-LEVELS)), _mm512_set1_ps(LEVELS));
}

TARGET static float error_of(const line *of, float scale)
{
    const __m512 over_scale = inverse(scale), whole = _mm512_set1_ps(scale);
    sums errors = {{_mm512_setzero_ps()}};
    for (long at = 0; at < of->k; at += SUMS * LANES)
#pragma GCC unroll 8
        for (int i = 0; i < SUMS; i++) {
            const __mmask16 mask = columns(of, at + i * LANES);
            const __m512 x = _mm512_maskz_loadu_ps(mask, of->x + at + i * LANES);
            const __m512 weights = _mm512_maskz_loadu_ps(mask, of->weights + at + i * LANES);
            const __m512 off = nearest(x, over_scale) * whole - x;
            errors.each[i] = errors.each[i] + off * off * weights;
        }
    return sum_of(&errors);
}

/* The best scale for the nearest numbers with `scale`. */
TARGET static float improved(const line *of, float scale)
{
    const __m512 over_scale = inverse(scale);
    sums squares = {{_mm512_setzero_ps()}}, common = squares;
    for (long at = 0; at < of->k; at += SUMS * LANES)
#pragma GCC unroll 8
        for (int i = 0; i < SUMS; i++) {
            const __mmask16 mask = columns(of, at + i * LANES);
            const __m512 x = _mm512_maskz_loadu_ps(mask, of->x + at + i * LANES);
            const __m512 number = nearest(x, over_scale);
            const __m512 counted = number * _mm512_maskz_loadu_ps(mask, of->weights + at + i * LANES);
            squares.each[i] = squares.each[i] + counted * number;
            common.each[i] = common.each[i] + counted * x;
        }
    const float total = sum_of(&squares);
    return rounded(total > 0 ? sum_of(&common) / total : scale);
}

TARGET static void quantise(const line *of, int8_t *numbers, uint16_t *to, const float *widths, int starts)
{
    __m512 least = _mm512_set1_ps(__builtin_inff()), most = _mm512_setzero_ps();
    for (long at = 0; at < of->k; at += LANES) {
        const __mmask16 mask = columns(of, at);
        const __m512 size = _mm512_abs_ps(_mm512_maskz_loadu_ps(mask, of->x + at));
        least = _mm512_mask_min_ps(least, mask, least, size);
        most = _mm512_max_ps(most, size);
    }
    const float high = _mm512_reduce_max_ps(most);
    /* A row of one magnitude is the magnitude times plus or minus one. */
    const float first = rounded(_mm512_reduce_min_ps(least) == high ? high : high / LEVELS);
    float best = first, smallest = error_of(of, first);
    for (int i = 0; i < starts; i++) {
        const float scale = improved(of, first * widths[i]), error = error_of(of, scale);
        if (error < smallest) {
            best = scale;
            smallest = error;
        }
    }
    const __m512 over_scale = inverse(best);
    for (long at = 0; at < of->k; at += LANES) {
        const __mmask16 mask = columns(of, at);
        const __m512 number = nearest(_mm512_maskz_loadu_ps(mask, of->x + at), over_scale);
        _mm_mask_storeu_epi8(numbers + at, mask, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(number)));
    }
    uint32_t bits;
    __builtin_memcpy(&bits, &best, sizeof bits);
    *to = (uint16_t)(bits >> 16);
}

/* x [rows, k], weights [k] of the columns, numbers [rows, k], scales [rows], bfloat16. `starts` ranges, shares
   `widths` of the full one, are tried. `threads` threads share the rows.
   Takes: arrays of the sizes above, with any bits. Refuses nothing: quantise.py does. */
void penstock_quantise_int8(const float *x, const float *weights, int8_t *numbers, uint16_t *scales, long rows, long k,
                            const float *widths, int starts, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const line of = {x + row * k, weights, k};
        quantise(&of, numbers + row * k, scales + row, widths, starts);
    }
}

#endif
