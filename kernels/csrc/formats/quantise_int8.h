/* 8-bit numbers with a scale for each row: the steps of formats/quantise.py, with the same bits at every level. */

#include "../bfloat16.h"
#include "../vectors/inputs.h"

#define MOST_OF_8 127
#define SUMS_OF_8 8 /* partial sums, each of every 128th column */
#define SMALLEST_SCALE 1.17549435e-38f

struct long_row {
    const float *x, *weights;
    long k;
};

struct sums_of_8 {
    floats each[SUMS_OF_8];
};

INLINE float sum_of_8(const struct sums_of_8 *of)
{
    floats fold[SUMS_OF_8];
    memcpy(fold, of->each, sizeof fold);
    for (int half = SUMS_OF_8 / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            fold[i] = f_add(fold[i], fold[i + half]);
    return f_sum(fold[0]);
}

/* The numbers from column `at` on, zeros past the last. */
INLINE floats columns_of(const float *from, const struct long_row *of, long at)
{
    const long left = of->k - at;
    return left > 0 ? f_load_some(from + at, left) : f_all(0);
}

INLINE floats over(float scale) { return f_all(scale < SMALLEST_SCALE ? 0 : 1 / scale); }

INLINE floats nearest_of_8(floats x, floats over_scale)
{
    return f_min(f_max(f_round(f_mul(x, over_scale)), f_all(-MOST_OF_8)), f_all(MOST_OF_8));
}

static float error_of_8(const struct long_row *of, float scale)
{
    const floats over_scale = over(scale), whole = f_all(scale);
    struct sums_of_8 errors;
    for (int i = 0; i < SUMS_OF_8; i++)
        errors.each[i] = f_all(0);
    for (long at = 0; at < of->k; at += SUMS_OF_8 * LANES)
#pragma GCC unroll 8
        for (int i = 0; i < SUMS_OF_8; i++) {
            const floats x = columns_of(of->x, of, at + i * LANES), weights = columns_of(of->weights, of, at + i * LANES);
            const floats off = f_sub(f_mul(nearest_of_8(x, over_scale), whole), x);
            errors.each[i] = f_add(errors.each[i], f_mul(f_mul(off, off), weights));
        }
    return sum_of_8(&errors);
}

INLINE float brief_of(float number) { return widened(rounded(number)); }

/* The best scale for the nearest numbers with `scale`. */
static float improved_8(const struct long_row *of, float scale)
{
    const floats over_scale = over(scale);
    struct sums_of_8 squares, common;
    for (int i = 0; i < SUMS_OF_8; i++)
        squares.each[i] = common.each[i] = f_all(0);
    for (long at = 0; at < of->k; at += SUMS_OF_8 * LANES)
#pragma GCC unroll 8
        for (int i = 0; i < SUMS_OF_8; i++) {
            const floats x = columns_of(of->x, of, at + i * LANES), number = nearest_of_8(x, over_scale);
            const floats counted = f_mul(number, columns_of(of->weights, of, at + i * LANES));
            squares.each[i] = f_add(squares.each[i], f_mul(counted, number));
            common.each[i] = f_add(common.each[i], f_mul(counted, x));
        }
    const float total = sum_of_8(&squares);
    return brief_of(total > 0 ? sum_of_8(&common) / total : scale);
}

static APART void quantise_row(const struct long_row *of, int8_t *numbers, uint16_t *to, const float *widths, int starts)
{
    floats most = f_all(0), least = f_all(INFINITY);
    for (long at = 0; at < of->k; at += LANES) {
        const floats size = f_abs(columns_of(of->x, of, at));
        const long left = of->k - at;
        most = f_max(most, size);
        least = f_min(least, left >= LANES ? size : f_choose(w_first(left), size, f_all(INFINITY)));
    }
    const float high = f_most(most);
    /* A row of one magnitude is the magnitude times plus or minus one. */
    const float first = brief_of(-f_most(f_sub(f_all(0), least)) == high ? high : high / MOST_OF_8);
    float best = first, smallest = error_of_8(of, first);
    for (int i = 0; i < starts; i++) {
        const float scale = improved_8(of, first * widths[i]), error = error_of_8(of, scale);
        if (error < smallest) {
            best = scale;
            smallest = error;
        }
    }
    const floats over_scale = over(best);
    for (long at = 0; at < of->k; at += LANES)
        w_store_some_bytes(numbers + at, f_to_words(nearest_of_8(columns_of(of->x, of, at), over_scale)), of->k - at);
    *to = rounded(best);
}

/* x [rows, k], weights [k] of the columns, numbers [rows, k], scales [rows], bfloat16. `starts` ranges, shares
   `widths` of the full one, are tried. `threads` threads share the rows.
   Takes: arrays of the sizes above, with any bits. Refuses nothing: quantise.py does. */
void EXPORT(quantise_int8)(const float *x, const float *weights, int8_t *numbers, uint16_t *scales, long rows, long k,
                           const float *widths, int starts, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const struct long_row of = {x + row * k, weights, k};
        quantise_row(&of, numbers + row * k, scales + row, widths, starts);
    }
}
