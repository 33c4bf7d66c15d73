/* bfloat16 matrices in two thirds of their bytes, exactly. The compiled half of formats/lossless.py.

   Sixteen rows are a tile. Its numbers come in groups of 64: four columns of the sixteen rows, in the order that
   makes a decoded group two registers for the product, with a pair of columns in each. Sign and mantissa of a number
   are stored as a byte. The exponent has a code of two bits in level 0 if it is one of the three most frequent of
   the tile. Otherwise the code there is 0, and level 1 has a code for the next three. Otherwise that code is 0 too,
   and level 2 has a code. An exponent that is none of these nine is a byte of level 3. Each level holds only the
   exponents without a code in the level before. The decoder spreads it out again with VPEXPANDB.

   A tile has: uint32 table[3], by level the exponents of codes 1 to 3 in bytes 1 to 3; uint32 counts[2], the number
   of codes in levels 1 and 2; level 1 and level 2, each padded to a byte; level 3; level 0; signs and mantissas.
   Exponents are rotated right by a bit, so that each bit is at its place in the two bytes of a number. A tile that
   would not be smaller than its numbers is stored plain, as its sixteen rows. Its length tells.

   A matrix of at least sixteen rows has: uint64 ends[n / 16], the end of each tile in bytes from the start of the
   matrix; the tiles; the remaining n % 16 rows, plain. */

#include "lossless.h"
#include "products.h"

/* The position of tile `number` in a matrix whose tiles end at `coded`, 0 if it is not inside. */
static const uint8_t *find(const uint8_t *matrix, uint64_t coded, long tiles, long number, uint64_t *bytes)
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
    const uint64_t tiles = (uint64_t)(n / ROWS);
    memcpy(coded, matrix + 8 * (tiles - 1), 8);
    return 8 * tiles <= *coded && *coded <= length && length - *coded >= 2 * (uint64_t)(n % ROWS * k);
}

#ifdef PENSTOCK_X86

#define WITH_BYTES __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,avx512vbmi,avx512vbmi2,bmi2,popcnt")))
#define WITHIN static inline __attribute__((always_inline)) WITH_BYTES

/* A tile during decoding. at[i] counts the codes taken of level i + 1, of counts[i]. */
struct tile {
    __m512i table[LEVELS];
    const uint8_t *codes, *rest;
    const uint8_t *levels[LEVELS];
    const uint8_t *ahead; /* the same place in the tile behind it, to prefetch */
    uint64_t stride;
    uint64_t counts[LEVELS], at[LEVELS];
};

/* 0 if `bytes` at `from` cannot be a tile of `groups` groups. */
WITHIN int start(struct tile *tile, const uint8_t *from, uint64_t bytes, uint64_t groups)
{
    uint32_t table[LEVELS], counts[2];
    if (bytes < HEAD + groups * (GROUP / 4 + GROUP))
        return 0;
    memcpy(table, from, sizeof table);
    memcpy(counts, from + sizeof table, sizeof counts);
    const uint64_t escapes = bytes - HEAD - groups * (GROUP / 4 + GROUP);
    if (escapes < quarter(counts[0]) + quarter(counts[1]))
        return 0;
    for (int i = 0; i < LEVELS; i++) {
        tile->table[i] = _mm512_set1_epi32((int)table[i]);
        tile->at[i] = 0;
    }
    tile->ahead = from + bytes;
    tile->stride = bytes / groups;
    tile->levels[0] = from + HEAD;
    tile->levels[1] = tile->levels[0] + quarter(counts[0]);
    tile->levels[2] = tile->levels[1] + quarter(counts[1]);
    tile->counts[0] = counts[0];
    tile->counts[1] = counts[1];
    tile->counts[2] = escapes - quarter(counts[0]) - quarter(counts[1]);
    tile->codes = from + HEAD + escapes;
    tile->rest = tile->codes + groups * (GROUP / 4);
    return 1;
}

/* Whether the levels held exactly what level 0 requested. */
WITHIN int finished(const struct tile *tile)
{
    return tile->at[0] == tile->counts[0] && tile->at[1] == tile->counts[1] && tile->at[2] == tile->counts[2];
}

/* The next codes of a level, never past its end, whatever the earlier levels say. The loads may reach 64 bytes past
   it, which exist: level 0 and the rest follow. */
WITHIN uint64_t place(const struct tile *tile, int level)
{
    return tile->at[level] < tile->counts[level] ? tile->at[level] : tile->counts[level];
}

/* Gives the numbers in `none` the exponents that level + 1 has for them. Returns those without one there. */
WITHIN __mmask64 descend(struct tile *tile, const int level, __mmask64 none, __m512i *exponent)
{
    /* Codes follow each other, four in a byte: eight of them are in the 24 bits from byte 2i on. */
    const __m512i eights = _mm512_add_epi64(_mm512_set1_epi64(0x0706050403020100),
                                            _mm512_set_epi64(0x0e0e0e0e0e0e0e0e, 0x0c0c0c0c0c0c0c0c, 0x0a0a0a0a0a0a0a0a,
                                                             0x0808080808080808, 0x0606060606060606, 0x0404040404040404,
                                                             0x0202020202020202, 0));
    const uint64_t at = place(tile, level);
    const __m512i shift = _mm512_add_epi8(_mm512_set1_epi64(0x0e0c0a0806040200), _mm512_set1_epi8((char)(at % 4 * 2)));
    const __m256i bytes = _mm256_loadu_si256((const __m256i *)(tile->levels[level] + at / 4));
    __m512i code = _mm512_multishift_epi64_epi8(shift, _mm512_permutexvar_epi8(eights, _mm512_castsi256_si512(bytes)));
    code = _mm512_maskz_expand_epi8(none, code);
    *exponent = _mm512_mask_permutexvar_epi8(*exponent, none, code, tile->table[level + 1]);
    tile->at[level] += (uint64_t)_mm_popcnt_u64(none);
    return _mm512_mask_testn_epi8_mask(none, code, _mm512_set1_epi8(3));
}

/* The next group: columns 4g and 4g + 1 of each row in pairs[0], the two after them in pairs[1]. */
WITHIN void next(struct tile *tile, __m512i pairs[2])
{
    const __m512i three = _mm512_set1_epi8(3), mantissa = _mm512_set1_epi8(0x7f);
    /* Byte i of level 0 has the codes of numbers i, i + 16, i + 32 and i + 48. */
    const __m512i apart = _mm512_add_epi64(_mm512_set1_epi64(0x3830282018100800),
                                           _mm512_set_epi64(0x0606060606060606, 0x0606060606060606, 0x0404040404040404,
                                                            0x0404040404040404, 0x0202020202020202, 0x0202020202020202,
                                                            0, 0));
    const __m512i first = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)tile->codes));
    const __m512i code = _mm512_multishift_epi64_epi8(apart, first);
    __m512i exponent = _mm512_permutexvar_epi8(code, tile->table[0]);
    __mmask64 none = _mm512_testn_epi8_mask(code, three);
    none = descend(tile, 0, none, &exponent);
    none = descend(tile, 1, none, &exponent);
    const __m512i others = _mm512_loadu_si512(tile->levels[2] + place(tile, 2));
    exponent = _mm512_mask_expand_epi8(exponent, none, others);
    tile->at[2] += (uint64_t)_mm_popcnt_u64(none);
    const __m512i rest = _mm512_loadu_si512(tile->rest);
    const __m512i low = _mm512_ternarylogic_epi32(mantissa, rest, exponent, 0xca); /* mantissa ? rest : exponent */
    const __m512i high = _mm512_ternarylogic_epi32(mantissa, exponent, rest, 0xca);
    pairs[0] = _mm512_unpacklo_epi8(low, high);
    pairs[1] = _mm512_unpackhi_epi8(low, high);
    tile->codes += GROUP / 4;
    tile->rest += GROUP;
    _mm_prefetch((const char *)tile->ahead, _MM_HINT_T1);
    _mm_prefetch((const char *)tile->ahead + 64, _MM_HINT_T1);
    tile->ahead += tile->stride;
}

/* Decodes the first `rows` rows of a tile to out [rows, k]. 0 if the tile is damaged. */
WITH_BYTES static int decode_64(const uint8_t *from, uint64_t bytes, long rows, long k, uint16_t *out)
{
    struct tile tile;
    if (bytes == 2 * ROWS * (uint64_t)k) {
        memcpy(out, from, (size_t)(2 * rows * k));
        return 1;
    }
    if (!start(&tile, from, bytes, (uint64_t)k / 4))
        return 0;
    for (long at = 0; at < k; at += STEP) {
        const long left = k - at;
        const __mmask32 mask = left >= STEP ? ~(__mmask32)0 : ((__mmask32)1 << left) - 1;
        __m512i column[LANES], row[LANES];
        if (left >= STEP)
            for (int i = 0; i < LANES; i += 2)
                next(&tile, column + i);
        else
            for (int i = 0; i < LANES; i += 2)
                if (2 * i < left)
                    next(&tile, column + i);
                else
                    column[i] = column[i + 1] = _mm512_setzero_si512();
        transpose(column, row);
        if (rows == ROWS)
            for (int i = 0; i < ROWS; i++)
                _mm512_mask_storeu_epi16(out + i * k + at, mask, row[i]);
        else
            for (int i = 0; i < ROWS; i++)
                if (i < rows)
                    _mm512_mask_storeu_epi16(out + i * k + at, mask, row[i]);
    }
    return finished(&tile);
}

/* x [tokens, k] times the sixteen rows of a tile, into out [tokens, n], in the order of summation of
   penstock_products. */
WITHIN int multiply(const int tokens, const uint8_t *from, uint64_t bytes, const uint16_t *x, uint16_t *out, long n,
                    long k, long chunk)
{
    struct tile tile;
    __m512 sum[MOST], total[MOST];
    if (!start(&tile, from, bytes, (uint64_t)k / 4))
        return 0;
    for (int t = 0; t < tokens; t++) {
        sum[t] = _mm512_setzero_ps();
        total[t] = _mm512_set1_ps(-0.0f);
    }
    for (long begin = 0; begin < k; begin += chunk) {
        const long end = begin + chunk < k ? begin + chunk : k;
        for (int t = 0; begin && t < tokens; t++) {
            total[t] = _mm512_add_ps(total[t], sum[t]);
            sum[t] = _mm512_setzero_ps();
        }
        for (long at = begin; at < end; at += 4) {
            __m512i pairs[2];
            next(&tile, pairs);
            for (int i = 0; i < 2; i++)
                for (int t = 0; t < tokens; t++) {
                    int32_t both;
                    memcpy(&both, x + t * k + at + 2 * i, sizeof both);
                    sum[t] = _mm512_dpbf16_ps(sum[t], (__m512bh)_mm512_set1_epi32(both), (__m512bh)pairs[i]);
                }
        }
    }
    for (int t = 0; t < tokens; t++) {
        const __m512 whole = chunk < k ? _mm512_add_ps(total[t], sum[t]) : sum[t];
        _mm256_storeu_si256((__m256i *)(out + t * n), (__m256i)_mm512_cvtneps_pbh(whole));
    }
    return finished(&tile);
}

#define CASE(T)                                                                                                        \
    case T:                                                                                                            \
        return multiply(T, from, bytes, x, out, n, k, chunk);

WITH_BYTES static int product(int tokens, const uint8_t *from, uint64_t bytes, const uint16_t *x, uint16_t *out, long n,
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

/* For each i < count: out[i] [tokens, n] = x[i] [tokens, k] times the transpose of matrix i, [n, k], with the same
   sums in the same order as penstock_products. matrices[2 * i] is its address, the number behind that its bytes, at
   least 8 for each tile. tokens <= MOST. 0 if a matrix is damaged.
   Takes: matrices of any bytes and the lengths given, at least n / 16 * 8: `locate` in planes.py
   refuses shorter ones. Refuses what is damaged. */
int penstock_lossless_products(long count, const uint64_t *matrices, const uint64_t *x, const uint64_t *out, long tokens,
                               long n, long k, long chunk, int threads)
{
    const long tiles = n / ROWS, pieces = (n + ROWS - 1) / ROWS;
    int damaged = 0;
#pragma omp parallel for schedule(guided) num_threads(threads) reduction(| : damaged)
    for (long number = 0; number < count * pieces; number++) {
        const long i = number / pieces, tile = number % pieces;
        const uint8_t *matrix = (const uint8_t *)matrices[2 * i];
        const uint16_t *state = (const uint16_t *)x[i];
        uint16_t *to = (uint16_t *)out[i] + tile * ROWS;
        uint64_t coded, bytes;
        if (!coded_bytes(matrix, matrices[2 * i + 1], n, k, &coded)) {
            damaged = 1;
            continue;
        }
        if (tile == tiles) {
            penstock_piece((int)tokens, (const uint16_t *)(matrix + coded), state, to, n, k, chunk, n % ROWS);
            continue;
        }
        const uint8_t *from = find(matrix, coded, tiles, tile, &bytes);
        if (from && bytes == 2 * ROWS * (uint64_t)k)
            penstock_piece((int)tokens, (const uint16_t *)from, state, to, n, k, chunk, ROWS);
        else
            damaged |= !from || !product((int)tokens, from, bytes, state, to, n, k, chunk);
    }
    return !damaged;
}

/* The best way to decode, see lossless.h. Products need BYTES_64. */
int penstock_lossless_way(void)
{
    if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt"))
        return BYTES_64;
    return penstock_lossless_16() ? BYTES_16 : PLAIN;
}

static int decode(int way, const uint8_t *from, uint64_t bytes, long rows, long k, uint16_t *out)
{
    return way == BYTES_64 ? decode_64(from, bytes, rows, k, out)
                           : penstock_lossless_tile(way, from, bytes, rows, k, out);
}

#else

int penstock_lossless_way(void) { return PLAIN; }

static int decode(int way, const uint8_t *from, uint64_t bytes, long rows, long k, uint16_t *out)
{
    return penstock_lossless_tile(way, from, bytes, rows, k, out);
}

#endif

/* Decodes rows from `first`, a multiple of 16, of the matrix [n, k] in `length` bytes to out [rows, k]. `threads`
   threads share the tiles. `way` must be one that the processor supports. 0 if the matrix is damaged. Nothing
   outside it is read.
   Takes: a matrix of any bytes and any length. Refuses what is damaged. `check_decode` in planes.py
   refuses rows outside of it. */
int penstock_lossless_decode(const uint8_t *matrix, long length, long n, long k, long first, long rows,
                             uint16_t *out, int way, int threads)
{
    const long tiles = n / ROWS;
    uint64_t coded;
    int damaged = 0;
    if (length < 8 * tiles || !coded_bytes(matrix, (uint64_t)length, n, k, &coded))
        return 0;
#pragma omp parallel for schedule(guided) num_threads(threads) reduction(| : damaged)
    for (long at = 0; at < rows; at += ROWS) {
        const long number = (first + at) / ROWS, there = rows - at < ROWS ? rows - at : ROWS;
        uint64_t bytes;
        if (number == tiles) {
            memcpy(out + at * k, matrix + coded, (size_t)(2 * there * k));
            continue;
        }
        const uint8_t *from = find(matrix, coded, tiles, number, &bytes);
        damaged |= !from || !decode(way, from, bytes, there, k, out + at * k);
    }
    return !damaged;
}
