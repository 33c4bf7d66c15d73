/* Products of a few rows with several bit-nested matrices in one call, each with the planes that it has; decoding.

   All codes are small integers, exact as float32 and as bfloat16. Steps, offsets and scales are applied to the float32
   sums of each group. With bfloat16 pairs a look-up makes numbers of the codes. Without them a mask and a conversion
   do: a code that stays where it is, is a power of two too large, which the inputs make up for. */

#include "../bfloat16.h"
#include "nested_codes.h"

/* Rows of inputs in one pass over the matrix: as many as have their sums in registers. */
#if 4 * PARTS <= AT_ONCE
#define NESTED_MOST 4
#else
#define NESTED_MOST 1
#endif
#define NESTED_AHEAD 2048 /* bytes to prefetch ahead */
#define CHAINS_MOST 4

/* Sums of a row of inputs at a time, so that they need not wait for each other. */
#ifdef HAS_PAIRS
#define CHAINS(T) 2
#else
#define CHAINS(T) (4 * PARTS * T <= AT_ONCE ? 4 : 2 * PARTS * T <= AT_ONCE ? 2 : 1)
#endif

/* Part p of chain c of each row is at c * PARTS + p. */
typedef float_part nested_sums[NESTED_MOST][CHAINS_MOST * PARTS];

#ifdef HAS_PAIRS

/* bfloat16 of factor * (i % count) for the 32 values of a look-up's five bits. */
INLINE word_part multiples(int count, int factor)
{
    uint16_t table[32];
    for (int i = 0; i < 32; i++)
        table[i] = rounded((float)(factor * (i % count)));
    return part_load_words(table);
}

/* Adds the products of two inputs of each row with pairs of numbers. */
INLINE void add_pairs_of(const int tokens, const int chain, word_part pairs, const input *x, long wide, nested_sums sum)
{
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++) {
        int32_t both;
        memcpy(&both, x + t * wide, sizeof both);
        sum[t][chain] = part_dot_pairs(sum[t][chain], both - (word_part){0}, pairs);
    }
}

/* Adds the products of the inputs x of each row with pair j of codes. */
INLINE void add_codes(const int tokens, const depth deep, const int split, const words word[2], const int j,
                      const input *x, long wide, nested_sums sum)
{
    const words codes = moved(word[WORD_OF(deep, split, j)], PLACE_OF(deep, split, j), 0);
    add_pairs_of(tokens, j % 2, part_lookup_halves(codes.p[0], multiples(1 << BITS_OF(deep), 1)), x, wide, sum);
}

/* The same with pair j of integers. */
INLINE void add_integers(const int tokens, words integers, const int j, const input *x, long wide, nested_sums sum)
{
    add_pairs_of(tokens, j % 2, part_lookup_halves(integers.p[0], multiples(16, 1)), x, wide, sum);
    add_pairs_of(tokens, 1 - j % 2, part_lookup_halves(w_shr(integers, 4).p[0], multiples(16, 16)), x, wide, sum);
}

/* Nothing: a look-up takes codes from where they are. */
INLINE void fit_inputs(const depth deep, const int split, input *x, long wide) { (void)deep, (void)split, (void)x, (void)wide; }

#else

/* Adds the products of an input of each row with the numbers of a column. */
INLINE void add_column(const int tokens, const int chain, floats numbers, const input *x, long wide, nested_sums sum)
{
    const int first = chain % CHAINS(tokens) * PARTS;
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++) {
        const float_part one = part_all(x[t * wide]);
#define COLUMN_PART(I) sum[t][first + I] = part_fma(numbers.p[I], one, sum[t][first + I]);
        EACH_PART(COLUMN_PART)
    }
}

/* Adds the products of the inputs x of one row with pair j of codes, which are 2^place and 2^(place + 16) too large. */
INLINE void add_codes(const int tokens, const depth deep, const int split, const words word[2], const int j,
                      const input *x, long wide, nested_sums sum)
{
    const words all = word[WORD_OF(deep, split, j)];
    const int place = PLACE_OF(deep, split, j), mask = (1 << BITS_OF(deep)) - 1;
    const words even = w_and(all, w_all(mask << place));
    const words odd = place + BITS_OF(deep) == 16 ? w_shr(all, 16 + place) : w_and(all, w_all(mask << (16 + place)));
    add_column(tokens, 2 * j, w_to_floats(even), x, wide, sum);
    add_column(tokens, 2 * j + 1, w_to_floats(odd), x + 1, wide, sum);
}

/* The same with pair j of integers, which are where they should be. */
INLINE void add_integers(const int tokens, words integers, const int j, const input *x, long wide, nested_sums sum)
{
    add_column(tokens, 2 * j, w_to_floats(w_and(integers, w_all(0xffff))), x, wide, sum);
    add_column(tokens, 2 * j + 1, w_to_floats(w_shr(integers, 16)), x + 1, wide, sum);
}

/* All codes of a register, with several rows of inputs. Sums and a mask for each place would take more registers than
   there are. So codes move to the lowest bits, and inputs need not make up for their place. */
INLINE void add_in_turn(const int tokens, const depth deep, const int split, words word[2], const input *x, long wide,
                        nested_sums sum)
{
    const words mask = w_all((1 << BITS_OF(deep)) - 1);
    const input *end = x + 2 * PAIRS_OF(split);
    __asm__("" : "+r"(end)); /* keeps the loop a loop */
    while (x != end)
#pragma GCC unroll 2
        for (int w = 0; w < (split && deep != UPPER_CODES ? 2 : 1); w++, x += 2) {
            add_column(tokens, 0, w_to_floats(w_and(word[w], mask)), x, wide, sum);
            add_column(tokens, 1, w_to_floats(w_and(w_shr(word[w], 16), mask)), x + 1, wide, sum);
            word[w] = w_shr(word[w], BITS_OF(deep));
        }
}

/* Divides a prepared row of inputs by the powers of two by which codes are too large. */
INLINE void fit_inputs(const depth deep, const int split, input *x, long wide)
{
    float by[LANES];
    const int columns = 2 * PAIRS_OF(split);
    if (deep == ALL_BITS)
        return;
    for (int i = 0; i < LANES; i++) {
        const int j = i % columns / 2, place = PLACE_OF(deep, split, j) + 16 * (i % 2);
        by[i] = place + BITS_OF(deep) == 32 ? 1.0f : 1.0f / (float)(1 << place); /* the highest are shifted */
    }
    for (long at = 0; at < wide; at += LANES)
        f_store(x + at, f_mul(f_load(x + at), f_load(by)));
}

#endif

/* One register of codes times its columns of x [tokens, wide]. */
INLINE void nested_step(const int tokens, const depth deep, const int split, const tile *from, long number, words steps,
                        const input *x, long wide, nested_sums sum)
{
    const int pairs = PAIRS_OF(split);
    words word[2];
    nested_words(deep, split, from, number, word);
    __builtin_prefetch(from->codes + number * REGISTER + NESTED_AHEAD);
    if (split && deep != UPPER_CODES)
        __builtin_prefetch(from->low + number * REGISTER + NESTED_AHEAD);
#ifndef HAS_PAIRS
    if (tokens > 1 && deep != ALL_BITS) {
        add_in_turn(tokens, deep, split, word, x, wide, sum);
        return;
    }
#endif
    if (deep != ALL_BITS) {
#pragma GCC unroll 8 /* otherwise the compiler keeps the sums in memory */
        for (int j = 0; j < pairs; j++)
            add_codes(tokens, deep, split, word, j, x + 2 * j, wide, sum);
        return;
    }
#pragma GCC unroll 2
    for (int first = 0; first < pairs; first += 4) {
        const words rest = nested_rest(split, from, number, first);
        __builtin_prefetch(from->rest + (split ? 2 * number + first / 4 : number) * REGISTER + NESTED_AHEAD);
#pragma GCC unroll 4
        for (int j = first; j < first + 4; j++)
            add_integers(tokens, nested_integers(split, word, rest, j, steps), j, x + 2 * j, wide, sum);
    }
}

INLINE floats nested_scales(const uint8_t *head) { return f_load_brief((const uint16_t *)head); }

/* x [tokens, wide], with sums [tokens, groups] of its groups, times one tile, `there` rows of it, into out [tokens,
   n]. */
INLINE void nested_multiply(const int tokens, const depth deep, const int split, const tile *from, const input *x,
                            const float *sums, uint16_t *out, long n, long k, long there)
{
    const int chains = CHAINS(tokens);
    const long columns = 2 * PAIRS_OF(split), groups = (k + GROUP - 1) / GROUP, wide = groups * GROUP;
    const long registers = (k + columns - 1) / columns, each = GROUP / columns;
    floats total[NESTED_MOST];
    for (int t = 0; t < tokens; t++)
        total[t] = f_all(0);
    for (long g = 0; g < groups; g++) {
        const group of = group_of(deep, from->head, groups, g);
        const input *inputs = x + g * GROUP;
        nested_sums sum;
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++)
#pragma GCC unroll 16
            for (int c = 0; c < chains * PARTS; c++)
                sum[t][c] = (float_part){0};
        if ((g + 1) * each <= registers)
            for (int i = 0; i < (split ? 2 : 4); i++)
                nested_step(tokens, deep, split, from, g * each + i, of.steps, inputs + i * columns, wide, sum);
        else
            for (long i = 0; g * each + i < registers; i++)
                nested_step(tokens, deep, split, from, g * each + i, of.steps, inputs + i * columns, wide, sum);
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) {
            floats whole;
#define WHOLE_PART(I)                                                                                                  \
    whole.p[I] = sum[t][I];                                                                                            \
    if (chains >= 2)                                                                                                   \
        whole.p[I] += sum[t][PARTS + I];                                                                               \
    if (chains == 4)                                                                                                   \
        whole.p[I] += sum[t][2 * PARTS + I] + sum[t][3 * PARTS + I];
            EACH_PART(WHOLE_PART)
            total[t] = f_fma(of.by, whole, total[t]);
            total[t] = f_fma(of.offset, f_all(sums[t * groups + g]), total[t]);
        }
    }
    const floats scales = nested_scales(from->head);
    for (int t = 0; t < tokens; t++)
        f_store_near(out + t * n, f_mul(total[t], scales), there);
}

/* The nearest bfloat16 of each lane, in its upper half, also if subnormal. */
INLINE words nested_rounded(floats numbers)
{
    const words bits = f_bits(numbers), odd = w_and(w_shr(bits, 16), w_all(1));
    return w_add(w_add(bits, odd), w_all(0x7fff));
}

/* out [there, k]: the weights of one tile. */
INLINE void nested_decode(const depth deep, const int split, const tile *from, uint16_t *out, long k, long there)
{
    const long columns = 2 * PAIRS_OF(split), groups = (k + GROUP - 1) / GROUP;
    const long registers = (k + columns - 1) / columns, each = GROUP / columns;
    const floats scales = nested_scales(from->head);
    for (long g = 0; g < groups; g++) {
        const group of = group_of(deep, from->head, groups, g);
        words column[LANES], row[LANES], word[2], rest = w_all(0);
#pragma GCC unroll 16
        for (int c = 0; c < LANES; c++) {
            const int j = c % PAIRS_OF(split);
            const long number = g * each + c / PAIRS_OF(split);
            words pair = w_all(0);
            if (number < registers) {
                if (j == 0)
                    nested_words(deep, split, from, number, word);
                if (deep == ALL_BITS && j % 4 == 0)
                    rest = nested_rest(split, from, number, j);
                pair = deep == ALL_BITS ? nested_integers(split, word, rest, j, of.steps)
                                        : nested_codes(deep, split, word, j);
            }
            const floats even = w_to_floats(w_and(pair, w_all(0xffff))), odd = w_to_floats(w_shr(pair, 16));
            const words first = nested_rounded(f_mul(f_fma(of.by, even, of.offset), scales));
            const words second = nested_rounded(f_mul(f_fma(of.by, odd, of.offset), scales));
            column[c] = w_or(w_shr(first, 16), w_and(second, w_all((int32_t)0xffff0000)));
        }
        w_transpose(column, row);
        store_rows(row, out + g * GROUP, k, there, k - g * GROUP);
    }
}

/* CALL(depth, split) for the planes that a tile has. */
#define DEPTHS(SPLIT, LOW, REST, CALL)                                                                                 \
    if (LOW)                                                                                                           \
        REST ? CALL(ALL_BITS, 1) : CALL(CODES, 1);                                                                     \
    else if (SPLIT)                                                                                                    \
        CALL(UPPER_CODES, 1);                                                                                          \
    else                                                                                                               \
        REST ? CALL(ALL_BITS, 0) : CALL(CODES, 0);

#define MULTIPLY(DEEP, SPLIT) nested_multiply(TOKENS, DEEP, SPLIT, from, x, sums, out, n, k, there)
#define DECODE(DEEP, SPLIT) nested_decode(DEEP, SPLIT, from, out, k, there)
#define FIT(DEEP, SPLIT) fit_inputs(DEEP, SPLIT, to, wide)
#define CASE(COUNT)                                                                                                    \
    case COUNT: {                                                                                                      \
        enum { TOKENS = COUNT };                                                                                       \
        DEPTHS(split, from->low, from->rest, MULTIPLY)                                                                 \
        break;                                                                                                         \
    }

static APART void nested_multiply_tile(int tokens, int split, const tile *from, const input *x, const float *sums,
                                       uint16_t *out, long n, long k, long there)
{
    switch (tokens) {
        CASE(1)
#if NESTED_MOST > 1
        CASE(2)
        CASE(3)
        CASE(4)
#endif
    }
}

static APART void nested_decode_tile(int split, const tile *from, uint16_t *out, long k, long there)
{
    DEPTHS(split, from->low, from->rest, DECODE)
}

/* One row of inputs [k], padded with zeros to `wide`, and the sum of each of its groups, for a matrix with `planes`.
   `alone` says that no other row passes over the matrix with it. */
static APART void nested_prepare(const uint64_t *planes, long most, int alone, const uint16_t *x, input *to, float *sums,
                                 long k, long wide)
{
    prepare_inputs(x, k, wide, to);
    sum_inputs(to, wide, GROUP, sums);
    if (alone) {
        DEPTHS(most == 3, most == 3 && planes[1], planes[most - 1], FIT)
    }
}

/* For each i < count: out[i] [tokens, n] = x[i] [tokens, k] times the transpose of matrix i [n, k], whose planes are
   at planes[most * i] and after, see nested_tiles.h. `room` has 132 bytes for each group of columns of each row of x.
   `threads` threads of torch's OpenMP runtime share the pieces.
   Takes: planes as long as BitNested.lengths(n, k), with any bytes: `locate` in planes.py refuses
   others. */
void EXPORT(products_nested)(long count, const uint64_t *planes, const uint64_t *x, const uint64_t *out, long tokens,
                             long n, long k, long most, void *room, int threads)
{
    const long groups = (k + GROUP - 1) / GROUP, wide = groups * GROUP, tiles = (n + TILE - 1) / TILE;
    float *sums = room;
    input *prepared = (input *)(sums + count * tokens * groups);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (long row = 0; row < count * tokens; row++)
            nested_prepare(planes + most * (row / tokens), most,
                           fewer(NESTED_MOST, tokens - row % tokens / NESTED_MOST * NESTED_MOST) == 1,
                           (const uint16_t *)x[row / tokens] + row % tokens * k,
                           prepared + row * wide, sums + row * groups, k, wide);
#pragma omp for schedule(guided)
        for (long number = 0; number < count * tiles; number++) {
            const long i = number / tiles, first = number % tiles * TILE;
            const tile from = tile_of(planes + most * i, most, k, first / TILE);
            for (long t = 0; t < tokens; t += NESTED_MOST)
                nested_multiply_tile((int)fewer(NESTED_MOST, tokens - t), most == 3, &from,
                                     prepared + (i * tokens + t) * wide, sums + (i * tokens + t) * groups,
                                     (uint16_t *)out[i] + t * n + first, n, k, fewer(TILE, n - first));
        }
    }
}

/* out [rows, k] bfloat16 = the rows from `first`, a multiple of TILE, of a matrix of k columns.
   Takes: planes as long as BitNested.lengths(n, k), with any bytes, and rows inside of them:
   `check_decode` in planes.py refuses others. */
void EXPORT(decode_nested)(const uint64_t *planes, uint16_t *out, long k, long most, long first, long rows, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row += TILE) {
        const tile from = tile_of(planes, most, k, (first + row) / TILE);
        nested_decode_tile(most == 3, &from, out + row * k, k, fewer(TILE, rows - row));
    }
}

#undef CASE
#undef CHAINS
