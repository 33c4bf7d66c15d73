/* bfloat16 matrices in two thirds of their bytes, exactly. The compiled half of formats/lossless.py.

   Sixteen rows are a tile. Its numbers come in groups of 64: four columns of the sixteen rows, in the order that
   makes a decoded group two registers for the product, with a pair of columns in each. Sign and mantissa of a number
   are stored as a byte. The exponent has a code of two bits in level 0 if it is one of the three most frequent of
   the tile. Otherwise the code there is 0, and level 1 has a code for the next three. Otherwise that code is 0 too,
   and level 2 has a code. An exponent that is none of these nine is a byte of level 3. Each level holds only the
   exponents without a code in the level before. The decoder spreads it out again.

   A tile has: uint32 table[3], by level the exponents of codes 1 to 3 in bytes 1 to 3; uint32 counts[2], the number
   of codes in levels 1 and 2; level 1 and level 2, each padded to a byte; level 3; level 0; signs and mantissas.
   Exponents are rotated right by a bit, so that each bit is at its place in the two bytes of a number. A tile that
   would not be smaller than its numbers is stored plain, as its sixteen rows. Its length tells.

   A matrix of at least sixteen rows has: uint64 ends[n / 16], the end of each tile in bytes from the start of the
   matrix; the tiles; the remaining n % 16 rows, plain. */

#include "lossless_codes.h"
#include "../products/bfloat16.h"

/* The position of tile `number` in a matrix whose tiles end at `coded`, 0 if it is not inside. */
static const uint8_t *find_tile(const uint8_t *matrix, uint64_t coded, long tiles, long number, uint64_t *bytes)
{
    uint64_t from = 8 * (uint64_t)tiles, to;
    if (number)
        memcpy(&from, matrix + 8 * (number - 1), 8);
    memcpy(&to, matrix + 8 * number, 8);
    if (from < 8 * (uint64_t)tiles || to < from || to > coded)
        return 0;
    *bytes = to - from;
    return matrix + from;
}

/* The end of the last tile. 0 if what follows it is not inside of `length` bytes, of which there are 8 for each tile. */
static int coded_bytes(const uint8_t *matrix, uint64_t length, long n, long k, uint64_t *coded)
{
    const uint64_t tiles = (uint64_t)(n / CODED_ROWS);
    memcpy(coded, matrix + 8 * (tiles - 1), 8);
    return 8 * tiles <= *coded && *coded <= length && length - *coded >= 2 * (uint64_t)(n % CODED_ROWS * k);
}

/* 0 if `bytes` at `from` cannot be a tile of `groups` groups. */
INLINE int start_tile(struct coded_tile *tile, const uint8_t *from, uint64_t bytes, uint64_t groups)
{
    uint32_t table[CODED_LEVELS], told[2];
    if (bytes < CODED_HEAD + groups * (CODED_GROUP / 4 + CODED_GROUP))
        return 0;
    memcpy(table, from, sizeof table);
    memcpy(told, from + sizeof table, sizeof told);
    const uint64_t escapes = bytes - CODED_HEAD - groups * (CODED_GROUP / 4 + CODED_GROUP);
    const uint64_t first = quarter(told[0]), second = quarter(told[1]);
    if (escapes < first + second)
        return 0;
    const uint8_t *const levels = from + CODED_HEAD;
    start_levels(tile, table, (const uint8_t *const[]){levels, levels + first, levels + first + second},
                 (const uint64_t[]){told[0], told[1], escapes - first - second});
    tile->codes = levels + escapes;
    tile->rest = tile->codes + groups * (CODED_GROUP / 4);
    tile->ahead = from + bytes;
    tile->stride = bytes / groups;
    return 1;
}

/* The next group, with its exponents: columns 4g and 4g + 1 of each row in pairs[0], the two after them in pairs[1]. */
INLINE void next_group(struct coded_tile *tile, const uint8_t exponents[CODED_GROUP], words pairs[2])
{
    const word_part mantissa = 0x7f7f7f7f - (word_part){0};
#define GROUP_PART(I)                                                                                                  \
    {                                                                                                                  \
        const word_part rest = part_load_words(tile->rest + I * WIDTH);                                                \
        const word_part exponent = part_load_words(exponents + I * WIDTH);                                             \
        const byte_part low = (byte_part)part_choose(mantissa, rest, exponent);                                        \
        const byte_part high = (byte_part)part_choose(mantissa, exponent, rest);                                       \
        pairs[0].p[I] = (word_part)part_zip_low(low, high);                                                            \
        pairs[1].p[I] = (word_part)part_zip_high(low, high);                                                           \
    }
    EACH_PART(GROUP_PART)
    tile->rest += CODED_GROUP;
    __builtin_prefetch(tile->ahead, 0, 2);
    __builtin_prefetch(tile->ahead + 64, 0, 2);
    tile->ahead += tile->stride;
}

/* The next groups, with 4 * groups columns, which are as many pairs of them. Begins a run of groups. */
INLINE void next_run(struct coded_tile *tile, const long groups, words *pairs)
{
    make_ready(tile);
#pragma GCC unroll 8
    for (long i = 0; i < groups; i++) {
        uint8_t exponents[CODED_GROUP];
        next_exponents(tile, exponents);
        next_group(tile, exponents, pairs + 2 * i);
    }
}

#define COLUMNS (4 * CODED_RUN) /* of a run */

/* Decodes the first `rows` rows of a tile to out [rows, k]. 0 if the tile is damaged. */
static APART int decode_tile(const uint8_t *from, uint64_t bytes, long rows, long k, uint16_t *out)
{
    struct coded_tile tile;
    if (bytes == 2 * CODED_ROWS * (uint64_t)k) {
        memcpy(out, from, (size_t)(2 * rows * k));
        return 1;
    }
    if (!start_tile(&tile, from, bytes, (uint64_t)k / 4))
        return 0;
    for (long at = 0; at < k; at += COLUMNS) {
        words column[LANES], row[LANES];
        if (k - at >= COLUMNS)
            next_run(&tile, CODED_RUN, column);
        else {
            memset(column, 0, sizeof column);
            next_run(&tile, (k - at) / 4, column);
        }
        w_transpose(column, row);
        store_rows(row, out + at, k, rows, k - at);
    }
    return finished(&tile);
}

#ifdef HAS_PAIRS
#include "lossless_pairs.h"
#endif
#include "lossless_columns.h"

/* One call of products: the shapes, and inputs of whole blocks as rows_piece wants them. */
struct coded_call {
    long tokens, n, k, order;
    const float *divided;
};

/* x [tokens, k] times the rows from `first` on of a matrix, into out [tokens, n]: a tile, or what is left of one. 0 if
   the matrix is damaged. */
static APART int coded_product(const struct coded_call *call, const uint8_t *matrix, uint64_t length, long tile,
                               const uint16_t *x, const uint16_t *bias, uint16_t *out)
{
    const long k = call->k, tiles = call->n / CODED_ROWS;
    long there = CODED_ROWS;
    uint64_t coded, bytes = 2 * CODED_ROWS * (uint64_t)k;
    if (!coded_bytes(matrix, length, call->n, k, &coded))
        return 0;
    const uint8_t *from = tile == tiles ? matrix + coded : find_tile(matrix, coded, tiles, tile, &bytes);
    if (!from)
        return 0;
    if (tile == tiles)
        there = call->n % CODED_ROWS;
    if (bytes == 2 * CODED_ROWS * (uint64_t)k) {
        brief_piece((int)call->tokens, call->order, (const uint16_t *)from, x, call->divided, bias, out, call->n, k,
                    there);
        return 1;
    }
#ifdef HAS_PAIRS
    if (call->order > 0)
        return pairs_of_tile((int)call->tokens, from, bytes, x, bias, out, call->n, k, call->order);
#endif
    return columns_of_tile((int)call->tokens, (int)call->order, from, bytes, x, call->divided, bias, out, call->n, k);
}

/* For each i < count: out[i] [tokens, n] = x[i] [tokens, k] times the transpose of matrix i, [n, k], with the same
   sums in the same order as `products`, and biases as there. matrices[2 * i] is its address, the number behind that its bytes, at least 8
   for each tile. tokens <= BRIEF_MOST. `room` has 4 bytes for each input. 0 if a matrix is damaged.
   Takes: matrices of any bytes and the lengths given, at least n / 16 * 8: `locate` in planes.py
   refuses shorter ones. Refuses what is damaged. */
int EXPORT(lossless_products)(long count, const uint64_t *matrices, const uint64_t *x, const uint64_t *out, long tokens,
                              long n, long k, long order, void *room, const uint64_t *biases, int threads)
{
    const long pieces = (n + CODED_ROWS - 1) / CODED_ROWS;
    float *divided = room;
    int damaged = 0;
#pragma omp parallel num_threads(threads) reduction(| : damaged)
    {
        if (order <= 0) {
#pragma omp for
            for (long row = 0; row < count * tokens; row++)
                divide_inputs((const uint16_t *)x[row / tokens] + row % tokens * k, k, divided + row * k);
        }
#pragma omp for schedule(guided)
        for (long number = 0; number < count * pieces; number++) {
            const long i = number / pieces, tile = number % pieces;
            const struct coded_call call = {tokens, n, k, order, divided + i * tokens * k};
            damaged |= !coded_product(&call, (const uint8_t *)matrices[2 * i], matrices[2 * i + 1], tile,
                                      (const uint16_t *)x[i], find_bias(biases, i, tile * CODED_ROWS),
                                      (uint16_t *)out[i] + tile * CODED_ROWS);
        }
    }
    return !damaged;
}

/* Decodes rows from `first`, a multiple of 16, of the matrix [n, k] in `length` bytes to out [rows, k]. `threads`
   threads share the tiles. 0 if the matrix is damaged. Nothing outside it is read.
   Takes: a matrix of any bytes and any length. Refuses what is damaged. `check_decode` in planes.py
   refuses rows outside of it. */
int EXPORT(lossless_decode)(const uint8_t *matrix, long length, long n, long k, long first, long rows, uint16_t *out,
                            int threads)
{
    const long tiles = n / CODED_ROWS;
    uint64_t coded;
    int damaged = 0;
    if (length < 8 * tiles || !coded_bytes(matrix, (uint64_t)length, n, k, &coded))
        return 0;
#pragma omp parallel for schedule(guided) num_threads(threads) reduction(| : damaged)
    for (long at = 0; at < rows; at += CODED_ROWS) {
        const long number = (first + at) / CODED_ROWS, there = fewer(CODED_ROWS, rows - at);
        uint64_t bytes;
        if (number == tiles) {
            memcpy(out + at * k, matrix + coded, (size_t)(2 * there * k));
            continue;
        }
        const uint8_t *from = find_tile(matrix, coded, tiles, number, &bytes);
        damaged |= !from || !decode_tile(from, bytes, there, k, out + at * k);
    }
    return !damaged;
}

#undef COLUMNS
