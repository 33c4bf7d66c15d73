/* Encoder of bit-nested matrices: the steps of formats/steps.py, sixteen rows and a group of columns at a time, with
   the same bits. formats/nested.py describes the planes. */

#include "unfused.h"

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include "lanes.h"
#include "formats/nested_tiles.h"

#define UNIT 16
#define LEFT 8
#define MOST_CODE 15
#define LARGEST_STEP 255
#define REFINEMENTS 2
#define TINY 1e-12f
#define SUMS 4 /* partial sums, of every fourth column, added at the end */

#define OF(NUMBER) _mm512_set1_ps(NUMBER)
#define EACH(COLUMN) for (int COLUMN = 0; COLUMN < GROUP; COLUMN++)

/* One group of columns of a tile. A register has the number of each row. */
typedef struct {
    float counts[GROUP];                        /* weight of each column */
    __m512 integers[GROUP], weights[GROUP];     /* weights count from the centre */
    __m512 centre, least, most;                 /* of the integers */
    __m512 most_offset, least_end, least_steps; /* bounds within which all rests fit */
    __m512 total, first, second;                /* sums of counts, and of these times weights and their squares */
} group;

/* Steps in units of 1 / UNIT, offsets from the centre, error; the best step and offset for the codes. */
typedef struct {
    __m512 steps, offsets, error, slope, at_zero;
} candidate;

typedef struct {
    __m512 slope, at_zero;
} line;

typedef struct {
    __m512 each[SUMS];
} sums;

INLINE __m512 rounded(__m512 numbers) { return _mm512_roundscale_ps(numbers, _MM_FROUND_TO_NEAREST_INT); }
INLINE __m512 floored(__m512 numbers) { return _mm512_roundscale_ps(numbers, _MM_FROUND_TO_NEG_INF); }
INLINE __m512 lifted(__m512 numbers) { return _mm512_roundscale_ps(numbers, _MM_FROUND_TO_POS_INF); }

INLINE __m512 bounded(__m512 numbers, __m512 least, __m512 most)
{
    return _mm512_min_ps(_mm512_max_ps(numbers, least), most);
}

INLINE __m512 nearest(__m512 steps, __m512 codes) { return floored(steps / OF(UNIT) * codes + OF(0.5f)); }

INLINE void add(sums *to, int column, __m512 term)
{
    if (column < SUMS)
        to->each[column] = term;
    else
        to->each[column % SUMS] = to->each[column % SUMS] + term;
}

INLINE __m512 sum_of(const sums *of) { return (of->each[0] + of->each[2]) + (of->each[1] + of->each[3]); }

/* The line through the weights over numbers, from the sums of these, their squares, and their products with weights. */
INLINE line through(const group *of, __m512 first, __m512 second, __m512 both)
{
    const __m512 varied = _mm512_max_ps(second * of->total - first * first, OF(TINY));
    const __m512 slope = (both * of->total - first * of->first) / varied;
    return (line){slope, (of->first - slope * first) / _mm512_max_ps(of->total, OF(TINY))};
}

INLINE candidate tried(const group *of, __m512 step, __m512 offset)
{
    candidate found;
    const __m512 steps = bounded(rounded(step * OF(UNIT)), of->least_steps, OF(LARGEST_STEP));
    const __m512 lowest = of->least_end - nearest(steps, OF(MOST_CODE));
    const __m512 offsets = bounded(rounded(offset), lowest, of->most_offset);
    found.steps = steps;
    found.offsets = bounded(offsets + of->centre, OF(-128), OF(127)) - of->centre;

    const __m512 by = steps / OF(UNIT), inverse = OF(UNIT) / steps, shift = found.offsets * inverse;
    sums codes, squares, products;
#pragma GCC unroll 32
    EACH(j) {
        const __m512 unrounded = of->weights[j] * inverse - shift;
        const __m512 code = bounded(rounded(unrounded), OF(0), OF(MOST_CODE)), counted = code * OF(of->counts[j]);
        add(&codes, j, counted);
        add(&squares, j, code * counted);
        add(&products, j, unrounded * counted);
    }
    const __m512 first = sum_of(&codes), second = sum_of(&squares), both = sum_of(&products);
    const __m512 moved = of->second - OF(2) * found.offsets * of->first + found.offsets * found.offsets * of->total;
    found.error = moved + by * by * (second - OF(2) * both);
    const line best = through(of, first, second, by * both + found.offsets * first);
    found.slope = best.slope;
    found.at_zero = best.at_zero;
    return found;
}

INLINE candidate better(candidate one, candidate other)
{
    const __mmask16 less = _mm512_cmp_ps_mask(other.error, one.error, _CMP_LT_OQ);
    return (candidate){
        _mm512_mask_mov_ps(one.steps, less, other.steps), _mm512_mask_mov_ps(one.offsets, less, other.offsets),
        _mm512_mask_mov_ps(one.error, less, other.error), _mm512_mask_mov_ps(one.slope, less, other.slope),
        _mm512_mask_mov_ps(one.at_zero, less, other.at_zero)};
}

TARGET static candidate best(const group *of)
{
    static const float part[2] = {1.0 / MOST_CODE, 0.9 / MOST_CODE}, edge[2] = {(1 - 1.0) / 2, (1 - 0.9) / 2};
    __m512 least = of->weights[0], most = least;
    for (int j = 1; j < GROUP; j++) {
        least = _mm512_min_ps(least, of->weights[j]);
        most = _mm512_max_ps(most, of->weights[j]);
    }
    const __m512 width = most - least;
    candidate found = tried(of, width * OF(part[0]), least + width * OF(edge[0]));
    found = better(found, tried(of, width * OF(part[1]), least + width * OF(edge[1])));
    for (int i = 0; i < REFINEMENTS; i++)
        found = better(found, tried(of, found.slope, found.at_zero));
    return found;
}

/* The best level of each row, see formats/steps.py: the meaning of the upper two bits of codes alone. */
TARGET static __m512 levels(const group *of, const candidate *chosen, const __m512 codes[GROUP])
{
    sums uppers, squares, products;
#pragma GCC unroll 32
    EACH(j) {
        const __m512 upper = floored(codes[j] / OF(4)) - OF(1.5f), counted = upper * OF(of->counts[j]);
        add(&uppers, j, counted);
        add(&squares, j, counted * upper);
        add(&products, j, counted * of->weights[j]);
    }
    const __m512 first = sum_of(&uppers), second = sum_of(&squares), in_codes = OF(UNIT) / chosen->steps;
    const line fit = through(of, first, second, sum_of(&products));
    const __m512 slope = fit.slope * in_codes, at_zero = (fit.at_zero - chosen->offsets) * in_codes;
    const __m512 mean = first / _mm512_max_ps(of->total, OF(TINY));
    __m512 found = OF(0), least = OF(__builtin_inff());
    for (int level = 0; level < 4; level++) {
        const __m512 turned = OF(3.25f + 0.5f * level) - slope;
        const __m512 centre = bounded(rounded((at_zero - turned * mean - OF(6.75f)) * OF(2)), OF(0), OF(3));
        const __m512 apart = OF(6.75f) + centre / OF(2) - at_zero;
        const __m512 error = apart * apart * of->total + OF(2) * apart * turned * first + turned * turned * second;
        const __mmask16 less = _mm512_cmp_ps_mask(error, least, _CMP_LT_OQ);
        found = _mm512_mask_mov_ps(found, less, centre + OF(4 * level));
        least = _mm512_mask_mov_ps(least, less, error);
    }
    return found;
}

/* Columns from `first` of a tile of `there` rows of x [.., k], which were rounded to `numbers` * `scales`. Missing
   rows and columns equal the last ones. */
TARGET static void fill(group *of, const float *x, const int8_t *numbers, __m512 scales, const float *counts, long there,
                        long k, long first)
{
    __m512i row[GROUP], column[GROUP];
    __m128i bytes[GROUP];
    const long columns = k - first < GROUP ? k - first : GROUP;
    for (int half = 0; half < 2; half++) {
        for (long r = 0; r < TILE; r++) {
            const long at = (r < there ? r : there - 1) * k + first + half * LANES, left = columns - half * LANES;
            const __mmask16 mask = left >= LANES ? 0xffff : left > 0 ? (__mmask16)((1 << left) - 1) : 0;
            row[r] = _mm512_castps_si512(_mm512_maskz_loadu_ps(mask, x + at));
            bytes[r] = _mm_maskz_loadu_epi8(mask, numbers + at);
        }
        transpose(row, column);
        for (int i = 0; i < LANES; i++)
            of->weights[half * LANES + i] = _mm512_castsi512_ps(column[i]);
        for (int r = 0; r < LANES; r++)
            row[r] = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes[r])));
        transpose(row, column);
        for (int i = 0; i < LANES; i++)
            of->integers[half * LANES + i] = _mm512_castsi512_ps(column[i]);
    }
    const __mmask16 some = _mm512_cmp_ps_mask(scales, OF(0), _CMP_GT_OQ);
    EACH(j) {
        const long from = j < columns ? j : columns - 1;
        of->counts[j] = counts[first + j];
        of->integers[j] = of->integers[from];
        of->weights[j] = of->weights[from];
    }
    __m512 least = of->integers[0], most = least;
    EACH(j) {
        const __m512 q = of->integers[j], exact = _mm512_maskz_div_ps(some, of->weights[j], scales);
        of->weights[j] = bounded(exact, q - OF(0.5f), q + OF(0.5f));
        least = _mm512_min_ps(least, q);
        most = _mm512_max_ps(most, q);
    }
    of->centre = rounded((least + most) / OF(2));
    of->most_offset = least - of->centre + OF(LEFT);
    of->least_end = most - of->centre - OF(LEFT - 1);
    const __m512 span = of->least_end - of->most_offset, each = OF((float)((double)UNIT / MOST_CODE));
    of->least_steps = bounded(lifted((span - OF(0.5f)) * each), OF(1), OF(LARGEST_STEP));
    sums all, firsts, seconds;
#pragma GCC unroll 32
    EACH(j) {
        of->weights[j] = of->weights[j] - of->centre;
        const __m512 count = OF(of->counts[j]), counted = of->weights[j] * count;
        add(&all, j, count);
        add(&firsts, j, counted);
        add(&seconds, j, counted * of->weights[j]);
    }
    of->total = sum_of(&all);
    of->first = sum_of(&firsts);
    of->second = sum_of(&seconds);
}

/* Packs registers of numbers, `bits` wide each, to `to`, `most` at most. */
INLINE void store(const __m512 numbers[GROUP], const int bits, uint8_t *to, long most, __mmask16 there)
{
    const int columns = 32 / bits;
#pragma GCC unroll 4
    for (int i = 0; i < GROUP / columns; i++) {
        __m512i word = _mm512_setzero_si512();
#pragma GCC unroll 16
        for (int c = 0; c < columns; c++)
            word = _mm512_or_si512(word, _mm512_slli_epi32(_mm512_cvtps_epi32(numbers[i * columns + c]),
                                                           c / 2 * bits + c % 2 * 16));
        if (i < most)
            _mm512_storeu_si512(to + i * REGISTER, _mm512_maskz_mov_epi32(there, word));
    }
}

INLINE void store_bytes(uint8_t *to, __m512 numbers, __mmask16 there)
{
    _mm_storeu_si128((__m128i *)to, _mm512_maskz_cvtepi32_epi8(there, _mm512_cvtps_epi32(numbers)));
}

/* Stores group g of a tile at its place in the planes. */
TARGET static void nest(const float *x, const int8_t *numbers, const uint16_t *scales, const float *counts,
                        const tile *to, long rows, long k, long g)
{
    const long groups = (k + GROUP - 1) / GROUP;
    const __mmask16 there = (__mmask16)((1u << rows) - 1);
    const __m512i upper = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, scales));
    group of;
    __m512 code[GROUP], left[GROUP];
    const __m512i last = _mm512_set1_epi32(scales[rows - 1]);
    fill(&of, x, numbers, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_mask_mov_epi32(last, there, upper), 16)), counts,
         rows, k, g * GROUP);
    const candidate chosen = best(&of);
    const __m512 inverse = OF(UNIT) / chosen.steps, shift = chosen.offsets * inverse, offsets = chosen.offsets + of.centre;
    EACH(j) code[j] = bounded(rounded(of.weights[j] * inverse - shift), OF(0), OF(MOST_CODE));

    uint8_t *head = (uint8_t *)to->head, *pair = head + 2 * TILE * (g + 1);
    store_bytes(pair, chosen.steps, there);
    store_bytes(pair + TILE, offsets, there);
    if (to->low) {
        uint8_t level[TILE], *at = head + 2 * TILE * (groups + 1) + g * TILE / 2;
        store_bytes(level, levels(&of, &chosen, code), there);
        for (int i = 0; i < TILE / 2; i++)
            at[i] = (uint8_t)(level[i] | level[i + TILE / 2] << 4);
    }
    EACH(j) {
        /* With a long step, the nearest code may be one too far away. */
        const __m512 from = of.integers[j] - offsets, rest = from - nearest(chosen.steps, code[j]);
        const __mmask16 over = _mm512_cmp_ps_mask(rest, OF(LEFT), _CMP_GE_OQ);
        const __mmask16 under = _mm512_cmp_ps_mask(rest, OF(-LEFT), _CMP_LT_OQ);
        code[j] = _mm512_mask_add_ps(code[j], over, code[j], OF(1));
        code[j] = _mm512_mask_sub_ps(code[j], under, code[j], OF(1));
        left[j] = from - nearest(chosen.steps, code[j]) + OF(LEFT);
    }
    const long fours = (k + 7) / 8 - g * (GROUP / 8), twos = (k + 15) / 16 - g * (GROUP / 16);
    if (to->low) {
        __m512 high[GROUP];
        EACH(j) {
            high[j] = floored(code[j] / OF(4));
            code[j] = code[j] - OF(4) * high[j];
        }
        store(high, 2, (uint8_t *)to->codes + g * 2 * REGISTER, twos, there);
        store(code, 2, (uint8_t *)to->low + g * 2 * REGISTER, twos, there);
        store(left, 4, (uint8_t *)to->rest + g * 4 * REGISTER, 2 * twos, there);
    } else {
        store(code, 4, (uint8_t *)to->codes + g * 4 * REGISTER, fours, there);
        store(left, 4, (uint8_t *)to->rest + g * 4 * REGISTER, fours, there);
    }
}

/* Encodes rows x [rows, k], which were rounded to `numbers` [rows, k] * `scales` [rows], to the tiles from `first`
   of the matrix at `planes`, which are zero before. counts [k, padded to a multiple of GROUP] has the weights of the
   columns. `threads` threads share the pieces.
   Takes: planes as long as BitNested.lengths, and finite numbers. Refuses nothing: nested.py makes the planes. */
void penstock_nest(const float *x, const int8_t *numbers, const uint16_t *scales, const float *counts,
                   const uint64_t *planes, long rows, long k, long first, long most, int threads)
{
    const long groups = (k + GROUP - 1) / GROUP, tiles = (rows + TILE - 1) / TILE;
#pragma omp parallel for num_threads(threads)
    for (long piece = 0; piece < tiles * groups; piece++) {
        const long row = piece / groups * TILE, g = piece % groups, there = rows - row < TILE ? rows - row : TILE;
        const tile to = tile_of(planes, most, k, first + piece / groups);
        nest(x + row * k, numbers + row * k, scales + row, counts, &to, there, k, g);
        if (g == 0)
            __builtin_memcpy((uint8_t *)to.head, scales + row, 2 * (size_t)there);
    }
}

#endif
