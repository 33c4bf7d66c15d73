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

#ifdef _OPENMP
int omp_get_thread_num(void); /* Clang may come without omp.h */
#else
#define omp_get_thread_num() 0
#endif

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

/* The next group: columns 4g and 4g + 1 of each row in pairs[0], the two after them in pairs[1]. */
INLINE void next_group(struct coded_tile *tile, words pairs[2])
{
    const word_part mantissa = 0x7f7f7f7f - (word_part){0};
    byte_part exponents[PARTS];
    next_exponents(tile, exponents);
#define GROUP_PART(I)                                                                                                  \
    {                                                                                                                  \
        const word_part rest = part_load_words(tile->rest + I * WIDTH), exponent = (word_part)exponents[I];            \
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

#define STEP 32 /* columns at a time */

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
    for (long at = 0; at < k; at += STEP) {
        const long columns = fewer(STEP, k - at);
        words column[LANES], row[LANES];
        if (columns == STEP)
            for (int i = 0; i < LANES; i += 2)
                next_group(&tile, column + i);
        else
            for (int i = 0; i < LANES; i += 2)
                if (2 * i < columns)
                    next_group(&tile, column + i);
                else
                    column[i] = column[i + 1] = w_all(0);
        w_transpose(column, row);
        store_rows(row, out + at, k, rows, columns);
    }
    return finished(&tile);
}

#ifdef HAS_PAIRS

/* x [tokens, k] times the sixteen rows of a tile, into out [tokens, n], in an order of oneDNN's: pairs.h. */
INLINE int multiply_coded(const int tokens, const uint8_t *from, uint64_t bytes, const uint16_t *x, uint16_t *out,
                          long n, long k, long chunk)
{
    struct coded_tile tile;
    float_part sum[BRIEF_MOST], total[BRIEF_MOST];
    if (!start_tile(&tile, from, bytes, (uint64_t)k / 4))
        return 0;
    for (int t = 0; t < tokens; t++) {
        sum[t] = (float_part){0};
        total[t] = part_all(-0.0f);
    }
    for (long begin = 0; begin < k; begin += chunk) {
        const long end = fewer(k, begin + chunk);
        for (int t = 0; begin && t < tokens; t++) {
            total[t] += sum[t];
            sum[t] = (float_part){0};
        }
        for (long at = begin; at < end; at += 4) {
            words pairs[2];
            next_group(&tile, pairs);
            for (int i = 0; i < 2; i++)
                for (int t = 0; t < tokens; t++) {
                    int32_t both;
                    memcpy(&both, x + t * k + at + 2 * i, sizeof both);
                    sum[t] = part_dot_pairs(sum[t], both - (word_part){0}, pairs[i].p[0]);
                }
        }
    }
    for (int t = 0; t < tokens; t++)
        f_store_near(out + t * n, (floats){{chunk < k ? total[t] + sum[t] : sum[t]}}, LANES);
    return finished(&tile);
}

#define CASE(T)                                                                                                        \
    case T:                                                                                                            \
        return multiply_coded(T, from, bytes, x, out, n, k, chunk);

static APART int coded_piece(int tokens, const uint8_t *from, uint64_t bytes, const uint16_t *x, uint16_t *out, long n,
                             long k, long chunk)
{
    switch (tokens) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
    }
    return 0;
}
#undef CASE

#endif

/* One call of products: the shapes, and inputs of whole blocks as rows_piece wants them. */
struct coded_call {
    long tokens, n, k, order;
    const float *divided;
};

/* x [tokens, k] times the rows from `first` on of a matrix, into out [tokens, n]: a tile, or what is left of one. 0 if
   the matrix is damaged. `rows` has room for a decoded tile. */
static APART int coded_product(const struct coded_call *call, const uint8_t *matrix, uint64_t length, long tile,
                               const uint16_t *x, uint16_t *out, uint16_t *rows)
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
    const uint16_t *plain = (const uint16_t *)from;
    if (bytes != 2 * CODED_ROWS * (uint64_t)k) {
#ifdef HAS_PAIRS
        if (call->order > 0)
            return coded_piece((int)call->tokens, from, bytes, x, out, call->n, k, call->order);
#endif
        if (!decode_tile(from, bytes, CODED_ROWS, k, rows))
            return 0;
        plain = rows;
    }
    brief_piece((int)call->tokens, call->order, plain, x, call->divided, out, call->n, k, there);
    return 1;
}

/* For each i < count: out[i] [tokens, n] = x[i] [tokens, k] times the transpose of matrix i, [n, k], with the same
   sums in the same order as `products`. matrices[2 * i] is its address, the number behind that its bytes, at least 8
   for each tile. tokens <= BRIEF_MOST. `room` has 4 bytes for each input, and 32 * k for each thread. 0 if a matrix is
   damaged.
   Takes: matrices of any bytes and the lengths given, at least n / 16 * 8: `locate` in planes.py
   refuses shorter ones. Refuses what is damaged. */
int EXPORT(lossless_products)(long count, const uint64_t *matrices, const uint64_t *x, const uint64_t *out, long tokens,
                              long n, long k, long order, void *room, int threads)
{
    const long pieces = (n + CODED_ROWS - 1) / CODED_ROWS;
    float *divided = room;
    uint16_t *rows = (uint16_t *)(divided + count * tokens * k);
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
                                      (const uint16_t *)x[i], (uint16_t *)out[i] + tile * CODED_ROWS,
                                      rows + omp_get_thread_num() * CODED_ROWS * k);
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

#undef STEP
