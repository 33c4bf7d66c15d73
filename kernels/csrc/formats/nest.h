/* Encoder of bit-nested matrices: the steps of formats/steps.py, sixteen rows and a group of columns at a time, with
   the same bits at every level. formats/nested.py describes the planes. */

#include "../vectors/inputs.h"
#include "nested_tiles.h"
#include "nest_steps.h"

/* The best level of each row, see formats/steps.py: the meaning of the upper two bits of codes alone. */
static floats levels_of(const struct nest_group *of, const struct candidate *chosen, const floats codes[GROUP])
{
    struct nest_sums uppers, squares, products;
#pragma GCC unroll 32
    EACH(j) {
        const floats upper = f_plus(f_floor(f_times(codes[j], 0.25f)), -1.5f), counted = f_times(upper, of->counts[j]);
        add_term(&uppers, j, counted);
        add_term(&squares, j, f_mul(counted, upper));
        add_term(&products, j, f_mul(counted, of->weights[j]));
    }
    const floats first = sum_of_terms(&uppers), second = sum_of_terms(&squares);
    const floats in_codes = f_div(f_all(NEST_UNIT), chosen->steps);
    const struct nest_line fit = through(of, first, second, sum_of_terms(&products));
    const floats slope = f_mul(fit.slope, in_codes), at_zero = f_mul(f_sub(fit.at_zero, chosen->offsets), in_codes);
    const floats mean = f_div(first, f_max(of->total, f_all(TINY)));
    floats found = f_all(0), least = f_all(INFINITY);
    for (int level = 0; level < 4; level++) {
        const floats turned = f_sub(f_all(3.25f + 0.5f * level), slope);
        const floats place = f_plus(f_sub(at_zero, f_mul(turned, mean)), -6.75f);
        const floats centre = within(f_round(f_times(place, 2)), f_all(0), f_all(3));
        const floats apart = f_sub(f_plus(f_times(centre, 0.5f), 6.75f), at_zero);
        const floats alone = f_mul(f_mul(apart, apart), of->total);
        const floats mixed = f_mul(f_mul(f_times(apart, 2), turned), first);
        const floats error = f_add(f_add(alone, mixed), f_mul(f_mul(turned, turned), second));
        const words less = f_less(error, least);
        found = f_choose(less, f_plus(centre, 4.0f * level), found);
        least = f_choose(less, error, least);
    }
    return found;
}

/* The first `count` bytes, with a sign; the others are zero and not touched. */
INLINE words w_load_some_signed_bytes(const void *from, long count)
{
    int8_t some[LANES] = {0};
    if (count >= LANES)
        return w_load_signed_bytes(from);
    if (count > 0)
        memcpy(some, from, (size_t)count);
    return w_load_signed_bytes(some);
}

/* Columns from `first` of a tile of `there` rows of x [.., k] and of the integers they were rounded to: as they lie. */
static void load_group(struct nest_group *of, const float *x, const int8_t *integers, long there, long k, long first)
{
    words row[LANES], column[LANES];
    for (int half = 0; half < 2; half++) {
        const long left = k - first - half * LANES, count = left > LANES ? LANES : left > 0 ? left : 0;
        const long at = first + half * LANES;
        for (long r = 0; r < TILE; r++)
            row[r] = count ? f_bits(f_load_some(x + (r < there ? r : there - 1) * k + at, count)) : w_all(0);
        w_transpose(row, column);
        for (int i = 0; i < LANES; i++)
            of->weights[half * LANES + i] = w_bits(column[i]);
        for (long r = 0; r < TILE; r++) {
            const int8_t *from = integers + (r < there ? r : there - 1) * k + at;
            row[r] = f_bits(w_to_floats(w_load_some_signed_bytes(from, count)));
        }
        w_transpose(row, column);
        for (int i = 0; i < LANES; i++)
            of->integers[half * LANES + i] = w_bits(column[i]);
    }
}

/* Columns from `first` of a tile of `there` rows of x [.., k], which were rounded to `integers` * `scales`. Missing
   rows and columns equal the last ones. */
static void fill_nest_group(struct nest_group *of, const float *x, const int8_t *integers, floats scales,
                            const float *counts, long there, long k, long first)
{
    const long columns = fewer(k - first, GROUP);
    load_group(of, x, integers, there, k, first);
    const words some = f_greater(scales, f_all(0));
    EACH(j) {
        const long from = j < columns ? j : columns - 1;
        of->counts[j] = counts[first + j];
        of->integers[j] = of->integers[from];
        of->weights[j] = of->weights[from];
    }
    floats least = of->integers[0], most = least;
    EACH(j) {
        const floats q = of->integers[j], exact = w_bits(w_and(some, f_bits(f_div(of->weights[j], scales))));
        of->weights[j] = within(exact, f_plus(q, -0.5f), f_plus(q, 0.5f));
        least = f_min(least, q);
        most = f_max(most, q);
    }
    of->centre = f_round(f_times(f_add(least, most), 0.5f));
    of->most_offset = f_plus(f_sub(least, of->centre), NEST_LEFT);
    of->least_end = f_plus(f_sub(most, of->centre), 1 - NEST_LEFT);
    const floats span = f_sub(of->least_end, of->most_offset);
    const floats steps = f_times(f_plus(span, -0.5f), (float)((double)NEST_UNIT / MOST_CODE));
    of->least_steps = within(f_ceil(steps), f_all(1), f_all(LARGEST_STEP));
    struct nest_sums all, firsts, seconds;
#pragma GCC unroll 32
    EACH(j) {
        of->weights[j] = f_sub(of->weights[j], of->centre);
        const floats count = f_all(of->counts[j]), counted = f_mul(of->weights[j], count);
        add_term(&all, j, count);
        add_term(&firsts, j, counted);
        add_term(&seconds, j, f_mul(counted, of->weights[j]));
    }
    of->total = sum_of_terms(&all);
    of->first = sum_of_terms(&firsts);
    of->second = sum_of_terms(&seconds);
}

/* Packs numbers, `bits` wide each, to `most` registers of `to` at most. Rows outside of the mask are zero. */
INLINE void store_codes(const floats codes[GROUP], const int bits, uint8_t *to, long most, words there)
{
    const int columns = 32 / bits;
#pragma GCC unroll 4
    for (int i = 0; i < GROUP / columns; i++) {
        words word = w_all(0);
#pragma GCC unroll 16
        for (int c = 0; c < columns; c++)
            word = w_or(word, w_shl(f_to_words(codes[i * columns + c]), c / 2 * bits + c % 2 * 16));
        if (i < most)
            w_store(to + i * REGISTER, w_and(there, word));
    }
}

INLINE void store_lanes(uint8_t *to, floats a, words there) { w_store_bytes(to, w_and(there, f_to_words(a))); }

/* The nearest codes, and what they leave: with a long step, the nearest code may be one too far away. */
INLINE void correct(const struct nest_group *of, floats steps, floats offsets, floats code[GROUP], floats left[GROUP])
{
    EACH(j) {
        const floats from = f_sub(of->integers[j], offsets), rest = f_sub(from, nearest_to_code(steps, code[j]));
        const words over = f_at_least(rest, f_all(NEST_LEFT)), under = f_less(rest, f_all(-NEST_LEFT));
        code[j] = f_add(code[j], w_bits(w_and(over, f_bits(f_all(1)))));
        code[j] = f_sub(code[j], w_bits(w_and(under, f_bits(f_all(1)))));
        left[j] = f_plus(f_sub(from, nearest_to_code(steps, code[j])), NEST_LEFT);
    }
}

/* Stores group g of a tile at its place in the planes. */
static APART void nest_piece(const float *x, const int8_t *integers, const uint16_t *scales, const float *counts,
                             const tile *to, long rows, long k, long g)
{
    const long groups = (k + GROUP - 1) / GROUP;
    const words there = w_first(rows);
    struct nest_group of;
    floats code[GROUP], left[GROUP];
    uint16_t all_scales[LANES];
    for (long r = 0; r < LANES; r++)
        all_scales[r] = scales[r < rows ? r : rows - 1];
    fill_nest_group(&of, x, integers, f_load_brief(all_scales), counts, rows, k, g * GROUP);
    const struct candidate chosen = best_candidate(&of);
    const floats inverse = f_div(f_all(NEST_UNIT), chosen.steps), shift = f_mul(chosen.offsets, inverse);
    const floats offsets = f_add(chosen.offsets, of.centre);
    EACH(j) code[j] = within(f_round(f_sub(f_mul(of.weights[j], inverse), shift)), f_all(0), f_all(MOST_CODE));

    uint8_t *head = (uint8_t *)to->head, *pair = head + 2 * TILE * (g + 1);
    store_lanes(pair, chosen.steps, there);
    store_lanes(pair + TILE, offsets, there);
    if (to->low) {
        uint8_t level[TILE], *at = head + 2 * TILE * (groups + 1) + g * TILE / 2;
        store_lanes(level, levels_of(&of, &chosen, code), there);
        for (int i = 0; i < TILE / 2; i++)
            at[i] = (uint8_t)(level[i] | level[i + TILE / 2] << 4);
    }
    correct(&of, chosen.steps, offsets, code, left);
    const long fours = (k + 7) / 8 - g * (GROUP / 8), twos = (k + 15) / 16 - g * (GROUP / 16);
    if (to->low) {
        floats high[GROUP];
        EACH(j) {
            high[j] = f_floor(f_times(code[j], 0.25f));
            code[j] = f_sub(code[j], f_times(high[j], 4));
        }
        store_codes(high, 2, (uint8_t *)to->codes + g * 2 * REGISTER, twos, there);
        store_codes(code, 2, (uint8_t *)to->low + g * 2 * REGISTER, twos, there);
        store_codes(left, 4, (uint8_t *)to->rest + g * 4 * REGISTER, 2 * twos, there);
    } else {
        store_codes(code, 4, (uint8_t *)to->codes + g * 4 * REGISTER, fours, there);
        store_codes(left, 4, (uint8_t *)to->rest + g * 4 * REGISTER, fours, there);
    }
}

/* Encodes rows x [rows, k], which were rounded to `integers` [rows, k] * `scales` [rows], to the tiles from `first`
   of the matrix at `planes`, which are zero before. counts [k, padded to a multiple of GROUP] has the weights of the
   columns. `threads` threads share the pieces.
   Takes: planes as long as BitNested.lengths, and finite numbers. Refuses nothing: nested.py makes the planes. */
void EXPORT(nest)(const float *x, const int8_t *integers, const uint16_t *scales, const float *counts,
                  const uint64_t *planes, long rows, long k, long first, long most, int threads)
{
    const long groups = (k + GROUP - 1) / GROUP, tiles = (rows + TILE - 1) / TILE;
#pragma omp parallel for num_threads(threads)
    for (long piece = 0; piece < tiles * groups; piece++) {
        const long row = piece / groups * TILE, g = piece % groups, there = fewer(rows - row, TILE);
        const tile to = tile_of(planes, most, k, first + piece / groups);
        nest_piece(x + row * k, integers + row * k, scales + row, counts, &to, there, k, g);
        if (g == 0)
            memcpy((uint8_t *)to.head, scales + row, 2 * (size_t)there);
    }
}
