/* 4-bit numbers with scales and zeros of least squared error: the steps of formats/quantise.py, sixteen rows at a time,
   with the same bytes at every level. */

#include "../vectors/inputs.h"

#define LARGEST_GROUP 128 /* the most columns */

struct group_of_4 {
    long columns;
    float weights[LARGEST_GROUP];  /* weight of each column */
    float x[LARGEST_GROUP][LANES]; /* one number of each row */
    floats count, total; /* sums over the columns: weights, weights * x */
};

struct line_of_4 { /* a weight is number * scale + zero */
    floats scale, zero;
};

/* The nearest bfloat16 numbers; subnormal ones become zero, as with AVX-512's own conversion. */
INLINE floats f_flushed_brief(floats a)
{
    const words tiny = f_less(f_abs(a), f_all(1.17549435e-38f));
    return w_bits(w_choose(tiny, w_and(f_bits(a), w_all((int32_t)0x80000000)), f_brief(a)));
}

INLINE floats over_each(floats scale)
{
    const words usable = f_at_least(scale, f_all(1.17549435e-38f));
    return w_bits(w_and(usable, f_bits(f_div(f_all(1), scale))));
}

INLINE floats nearest_of_4(floats x, floats zero, floats over_scale)
{
    return f_min(f_max(f_round(f_mul(f_sub(x, zero), over_scale)), f_all(-8)), f_all(7));
}

INLINE struct line_of_4 improved_4(const struct group_of_4 *group, struct line_of_4 line)
{
    const floats over_scale = over_each(line.scale);
    floats total = f_all(0), squares = total, common = total;
    for (long j = 0; j < group->columns; j++) {
        const floats x = f_load(group->x[j]), number = nearest_of_4(x, line.zero, over_scale);
        const floats counted = f_mul(number, f_all(group->weights[j]));
        total = f_add(total, counted);
        squares = f_fma_once(counted, number, squares);
        common = f_fma_once(counted, x, common);
    }
    const floats all = f_mul(group->count, squares), turned = f_sub(f_all(0), total);
    const floats spread = f_fma_once(turned, total, all);
    const floats slope = f_fma_once(turned, group->total, f_mul(group->count, common));
    const words differ = f_greater(spread, f_mul(all, f_all(1e-5f)));
    const floats scale = f_flushed_brief(f_choose(differ, f_div(slope, spread), line.scale));
    const floats rest = f_fma_once(f_sub(f_all(0), scale), total, group->total);
    return (struct line_of_4){scale, f_flushed_brief(f_div(rest, group->count))};
}

INLINE floats error_of_4(const struct group_of_4 *group, struct line_of_4 line)
{
    const floats over_scale = over_each(line.scale);
    floats error = f_all(0);
    for (long j = 0; j < group->columns; j++) {
        const floats x = f_load(group->x[j]), number = nearest_of_4(x, line.zero, over_scale);
        const floats off = f_sub(f_fma_once(number, line.scale, line.zero), x);
        error = f_fma_once(f_mul(off, off), f_all(group->weights[j]), error);
    }
    return error;
}

/* Columns from `first` of `rows` rows of x [.., k]. Missing rows and columns equal the last ones. */
static void fill_group(struct group_of_4 *group, const float *x, const float *weights, long rows, long k, long first)
{
    group->count = group->total = f_all(0);
    for (long j = 0; j < group->columns; j++) {
        const long column = first + j < k ? first + j : k - 1;
        for (long row = 0; row < LANES; row++)
            group->x[j][row] = x[(row < rows ? row : rows - 1) * k + column];
        group->weights[j] = weights[first + j];
        const floats weight = f_all(group->weights[j]);
        group->count = f_add(group->count, weight);
        group->total = f_fma_once(weight, f_load(group->x[j]), group->total);
    }
}

static struct line_of_4 best_line(const struct group_of_4 *group, const float *widths, int starts, int rounds)
{
    floats low = f_load(group->x[0]), high = low;
    for (long j = 1; j < group->columns; j++) {
        low = f_min(low, f_load(group->x[j]));
        high = f_max(high, f_load(group->x[j]));
    }
    const floats halved = f_all(0.5f), upper = f_mul(high, halved);
    const floats middle = f_fma_once(low, halved, upper), half = f_fma_once(low, f_all(-0.5f), upper);
    struct line_of_4 best = {middle, middle};
    floats least = f_all(__builtin_nanf(""));
    for (int start = 0; start < starts; start++) {
        struct line_of_4 line;
        line.scale = f_mul(half, f_all(2 * widths[start] / 15));
        line.zero = f_fma_once(line.scale, halved, middle);
        for (int round = 0; round < rounds; round++)
            line = improved_4(group, line);
        const floats error = error_of_4(group, line);
        const words worse = f_at_least(error, least); /* false if `least` is NaN */
        best.scale = f_choose(worse, best.scale, line.scale);
        best.zero = f_choose(worse, best.zero, line.zero);
        least = f_choose(worse, least, error);
    }
    return best;
}

static void store_group(const struct group_of_4 *group, struct line_of_4 line, uint8_t *to, uint16_t *scales,
                        uint16_t *zeros, long rows, long whole, long groups)
{
    const floats over_scale = over_each(line.scale);
    uint16_t scale[LANES], zero[LANES];
    w_store_halves(scale, w_shr(f_bits(f_flushed_brief(line.scale)), 16));
    w_store_halves(zero, w_shr(f_bits(f_flushed_brief(line.zero)), 16));
    for (long row = 0; row < rows; row++) {
        scales[row * groups] = scale[row];
        zeros[row * groups] = zero[row];
    }
    for (long j = 0; j < group->columns; j++) {
        uint8_t bytes[LANES];
        w_store_bytes(bytes, w_add(f_to_words(nearest_of_4(f_load(group->x[j]), line.zero, over_scale)), w_all(8)));
        for (long row = 0; row < rows; row++)
            to[row * whole + j] = bytes[row];
    }
}

/* One group of columns, from `first`, of `rows` rows. */
static APART void quantise_group(const float *x, const float *weights, uint8_t *to, uint16_t *scales, uint16_t *zeros,
                                 long rows, long k, long whole, long width, long first, const float *widths, int starts,
                                 int rounds)
{
    struct group_of_4 group = {.columns = width};
    fill_group(&group, x, weights, rows, k, first);
    store_group(&group, best_line(&group, widths, starts, rounds), to, scales, zeros, rows, whole, whole / width);
}

/* x [rows, k]; weights [columns], where columns is k padded to a multiple of `group`; to [rows, columns], scales and
   zeros [rows, columns / group]. `starts` ranges, shares `widths` of the full one, are tried and refined `rounds`
   times.
   Takes: arrays of the sizes above, with any bits, group <= LARGEST_GROUP. Refuses nothing: quantise.py does. */
void EXPORT(quantise_int4)(const float *x, const float *weights, uint8_t *to, uint16_t *scales, uint16_t *zeros, long rows,
                           long k, long group, const float *widths, int starts, int rounds, int threads)
{
    const long groups = (k + group - 1) / group, strips = (rows + LANES - 1) / LANES, whole = groups * group;
#pragma omp parallel for num_threads(threads)
    for (long piece = 0; piece < strips * groups; piece++) {
        const long row = piece / groups * LANES, at = piece % groups;
        quantise_group(x + row * k, weights, to + row * whole + at * group, scales + row * groups + at,
                       zeros + row * groups + at, fewer(rows - row, LANES), k, whole, group, at * group, widths, starts,
                       rounds);
    }
}
