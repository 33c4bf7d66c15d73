/* Products of a few rows with several bit-nested matrices in one call, each with the planes that it has; decoding.

   formats/nested.py describes the planes and their numbers. One 32-bit lane belongs to one of the sixteen rows of a
   tile, and holds codes of neighbouring columns in its halves, so that a shift and a look-up make the bfloat16 pairs
   for VDPBF16PS. All codes are small integers, exact in bfloat16. Steps, offsets and scales are applied to the
   float32 sums of each group. */

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include "lanes.h"
#include "formats/nested_tiles.h"

#include <string.h>

#define MOST 4      /* rows of inputs in one pass over the matrix */
#define AHEAD 2048  /* bytes to prefetch ahead */

typedef enum { HALF, WHOLE, QUARTER } depth; /* available bits of a number: 4, 8 or 2 */

/* bfloat16 of factor * (i % count) for the 32 values of a look-up's five bits. */
INLINE __m512i multiples(int count, int factor)
{
    uint16_t table[32];
    for (int i = 0; i < 32; i++) {
        const float number = (float)(factor * (i % count));
        uint32_t bits;
        memcpy(&bits, &number, sizeof bits);
        table[i] = (uint16_t)(bits >> 16);
    }
    return _mm512_loadu_si512(table);
}

/* Moves number j of each half word, `bits` wide, to bit `to`, among bits of other numbers. */
INLINE __m512i placed(__m512i word, const int bits, const int j, const int to)
{
    const int by = bits * j - to;
    return by > 0 ? _mm512_srli_epi16(word, by) : by < 0 ? _mm512_slli_epi16(word, -by) : word;
}

/* Pairs of columns j of one register of codes b, from bit `to` on. Other bits are zero only if `clean`. */
INLINE __m512i codes_of(const depth deep, const int split, const tile *from, long number, const int j, const int to,
                        const int clean)
{
    const __m512i codes = _mm512_loadu_si512(from->codes + number * REGISTER);
    if (!split || deep == QUARTER) {
        const __m512i pair = placed(codes, split ? 2 : 4, j, to);
        return clean ? _mm512_and_si512(pair, _mm512_set1_epi16((short)((split ? 3 : 15) << to))) : pair;
    }
    const __m512i low = _mm512_loadu_si512(from->low + number * REGISTER);
    const __m512i pair = _mm512_ternarylogic_epi32(placed(codes, 2, j, to + 2), placed(low, 2, j, to),
                                                   _mm512_set1_epi16((short)(12 << to)), 0xe4); /* by the mask */
    return clean ? _mm512_and_si512(pair, _mm512_set1_epi16((short)(15 << to))) : pair;
}

/* The integers round(b * step / 16) + rest + 8, 0 to 254, of pairs of columns j of one register of codes. */
INLINE __m512i integers_of(const int split, const tile *from, long number, const int j, __m512i steps)
{
    const __m512i codes = codes_of(WHOLE, split, from, number, j, 11, 1);
    const __m512i rest = _mm512_loadu_si512(from->rest + (split ? 2 * number + j / 4 : number) * REGISTER);
    const __m512i left = _mm512_and_si512(placed(rest, 4, j % 4, 0), _mm512_set1_epi16(15));
    return _mm512_add_epi16(_mm512_mulhrs_epi16(codes, steps), left); /* mulhrs: (product >> 14) + 1 >> 1 */
}

/* A weight is `offset + by * number`, times its row's scale. The number is an integer as above if all planes are
   there, else a code. `steps` has the step in both halves of a lane. */
typedef struct {
    __m512i steps;
    __m512 by, offset;
} group;

INLINE group group_of(const depth deep, const uint8_t *head, long groups, long g)
{
    const __m128i *pair = (const __m128i *)(head + 2 * TILE * (g + 1));
    const __m512i step = _mm512_cvtepu8_epi32(_mm_loadu_si128(pair));
    group of = {_mm512_or_si512(step, _mm512_slli_epi32(step, 16)),
                _mm512_mul_ps(_mm512_cvtepi32_ps(step), _mm512_set1_ps(1 / 16.f)),
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(pair + 1)))};
    if (deep == WHOLE) {
        of.by = _mm512_set1_ps(1);
        of.offset = _mm512_sub_ps(of.offset, _mm512_set1_ps(8));
    } else if (deep == QUARTER) { /* b is centre + spread * (upper bits - 1.5): formats/steps.py */
        const __m128i both = _mm_loadl_epi64((const __m128i *)(head + 2 * TILE * (groups + 1) + g * TILE / 2));
        const __m512i level = _mm512_cvtepu8_epi32(_mm_unpacklo_epi64(both, _mm_srli_epi16(both, 4)));
        const __m512i three = _mm512_set1_epi32(3);
        const __m512 half = _mm512_set1_ps(.5f);
        const __m512 centre = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_and_si512(level, three)), half,
                                              _mm512_set1_ps(6.75f));
        const __m512 spread = _mm512_fmadd_ps(
            _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(level, 2), three)), half, _mm512_set1_ps(3.25f));
        of.offset = _mm512_fmadd_ps(of.by, _mm512_fnmadd_ps(spread, _mm512_set1_ps(1.5f), centre), of.offset);
        of.by = _mm512_mul_ps(of.by, spread);
    }
    return of;
}

INLINE __m512 scales_of(const uint8_t *head)
{
    const __m256i scales = _mm256_loadu_si256((const __m256i *)head);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(scales), 16));
}

/* One register of codes times its columns of x [tokens, wide]. */
INLINE void step(const int tokens, const depth deep, const int split, const tile *from, long number, __m512i steps,
                 const uint16_t *x, long wide, __m512 sum[MOST][2])
{
    const __m512i ones = multiples(deep == QUARTER ? 4 : 16, 1), sixteens = multiples(16, 16);
    _mm_prefetch((const char *)from->codes + number * REGISTER + AHEAD, _MM_HINT_T0);
    if (split && deep != QUARTER)
        _mm_prefetch((const char *)from->low + number * REGISTER + AHEAD, _MM_HINT_T0);
#pragma GCC unroll 8 /* otherwise the compiler keeps the sums in memory */
    for (int j = 0; j < 8; j++) {
        if (!split && j == 4)
            break;
        __m512i pair, above;
        if (deep == WHOLE) {
            if (j % 4 == 0)
                _mm_prefetch((const char *)from->rest + (split ? 2 * number + j / 4 : number) * REGISTER + AHEAD,
                             _MM_HINT_T0);
            const __m512i whole = integers_of(split, from, number, j, steps);
            pair = _mm512_permutexvar_epi16(whole, ones);
            above = _mm512_permutexvar_epi16(_mm512_srli_epi16(whole, 4), sixteens);
        } else
            pair = _mm512_permutexvar_epi16(codes_of(deep, split, from, number, j, 0, 0), ones);
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) {
            int32_t both;
            memcpy(&both, x + t * wide + 2 * j, sizeof both);
            const __m512bh input = (__m512bh)_mm512_set1_epi32(both);
            sum[t][j % 2] = _mm512_dpbf16_ps(sum[t][j % 2], input, (__m512bh)pair);
            if (deep == WHOLE)
                sum[t][1 - j % 2] = _mm512_dpbf16_ps(sum[t][1 - j % 2], input, (__m512bh)above);
        }
    }
}

/* x [tokens, wide], with sums [tokens, groups] of its groups, times one tile, `there` rows of it, into out [tokens,
   n]. */
INLINE void multiply(const int tokens, const depth deep, const int split, const tile *from, const uint16_t *x,
                     const float *sums, uint16_t *out, long n, long k, long there)
{
    const long columns = split ? 16 : 8, groups = (k + GROUP - 1) / GROUP, wide = groups * GROUP;
    const long registers = (k + columns - 1) / columns, each = GROUP / columns;
    __m512 total[MOST];
    for (int t = 0; t < tokens; t++)
        total[t] = _mm512_setzero_ps();
    for (long g = 0; g < groups; g++) {
        const group of = group_of(deep, from->head, groups, g);
        const uint16_t *inputs = x + g * GROUP;
        __m512 sum[MOST][2];
        for (int t = 0; t < tokens; t++)
            sum[t][0] = sum[t][1] = _mm512_setzero_ps();
        if ((g + 1) * each <= registers)
            for (int i = 0; i < (split ? 2 : 4); i++)
                step(tokens, deep, split, from, g * each + i, of.steps, inputs + i * columns, wide, sum);
        else
            for (long i = 0; g * each + i < registers; i++)
                step(tokens, deep, split, from, g * each + i, of.steps, inputs + i * columns, wide, sum);
        for (int t = 0; t < tokens; t++) {
            total[t] = _mm512_fmadd_ps(of.by, _mm512_add_ps(sum[t][0], sum[t][1]), total[t]);
            total[t] = _mm512_fmadd_ps(of.offset, _mm512_set1_ps(sums[t * groups + g]), total[t]);
        }
    }
    const __m512 scales = scales_of(from->head);
    const __mmask16 mask = (__mmask16)((1u << there) - 1);
    for (int t = 0; t < tokens; t++) {
        const __m512 scaled = _mm512_mul_ps(total[t], scales);
        _mm256_mask_storeu_epi16(out + t * n, mask, (__m256i)_mm512_cvtneps_pbh(scaled));
    }
}

/* The nearest bfloat16 of each lane, in its upper half, also if subnormal. */
INLINE __m512i rounded(__m512 numbers)
{
    const __m512i bits = _mm512_castps_si512(numbers);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
}

/* out [there, k]: the weights of one tile. */
INLINE void decode(const depth deep, const int split, const tile *from, uint16_t *out, long k, long there)
{
    const long columns = split ? 16 : 8, groups = (k + GROUP - 1) / GROUP;
    const long registers = (k + columns - 1) / columns, each = GROUP / columns;
    const __m512 scales = scales_of(from->head);
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    for (long g = 0; g < groups; g++) {
        const group of = group_of(deep, from->head, groups, g);
        const long left = k - g * GROUP;
        const __mmask32 mask = left >= GROUP ? ~(__mmask32)0 : ((__mmask32)1 << left) - 1;
        __m512i column[LANES], row[LANES];
        for (int c = 0; c < LANES; c++) {
            const int j = c % (split ? 8 : 4);
            const long number = g * each + c / (split ? 8 : 4);
            __m512i pair = _mm512_setzero_si512();
            if (number < registers)
                pair = deep == WHOLE ? integers_of(split, from, number, j, of.steps)
                                     : codes_of(deep, split, from, number, j, 0, 1);
            const __m512 even = _mm512_cvtepi32_ps(_mm512_and_si512(pair, _mm512_set1_epi32(0xffff)));
            const __m512 odd = _mm512_cvtepi32_ps(_mm512_srli_epi32(pair, 16));
            const __m512i first = rounded(_mm512_mul_ps(_mm512_fmadd_ps(of.by, even, of.offset), scales));
            const __m512i second = rounded(_mm512_mul_ps(_mm512_fmadd_ps(of.by, odd, of.offset), scales));
            column[c] = _mm512_or_si512(_mm512_srli_epi32(first, 16), _mm512_and_si512(second, upper));
        }
        transpose(column, row);
        for (int r = 0; r < LANES; r++)
            if (r < there)
                _mm512_mask_storeu_epi16(out + r * k + g * GROUP, mask, row[r]);
    }
}

#define DEPTHS(CALL)                                                                                                   \
    if (from->low)                                                                                                     \
        from->rest ? CALL(WHOLE, 1) : CALL(HALF, 1);                                                                   \
    else if (split)                                                                                                    \
        CALL(QUARTER, 1);                                                                                              \
    else                                                                                                               \
        from->rest ? CALL(WHOLE, 0) : CALL(HALF, 0);

#define MULTIPLY(DEEP, SPLIT) multiply(T, DEEP, SPLIT, from, x, sums, out, n, k, there)
#define DECODE(DEEP, SPLIT) decode(DEEP, SPLIT, from, out, k, there)
#define CASE(COUNT)                                                                                                    \
    case COUNT: {                                                                                                      \
        enum { T = COUNT };                                                                                            \
        DEPTHS(MULTIPLY)                                                                                               \
        break;                                                                                                         \
    }

TARGET static void multiply_tile(int tokens, int split, const tile *from, const uint16_t *x, const float *sums,
                                 uint16_t *out, long n, long k, long there)
{
    switch (tokens) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
    }
}

TARGET static void decode_tile(int split, const tile *from, uint16_t *out, long k, long there) { DEPTHS(DECODE) }

/* One row of inputs [k], padded with zeros to `wide`, and the sum of each of its groups. */
TARGET static void prepare(const uint16_t *x, uint16_t *padded, float *sums, long k, long wide)
{
    memcpy(padded, x, 2 * k);
    memset(padded + k, 0, 2 * (wide - k));
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    for (long at = 0; at < wide; at += GROUP) {
        const __m512bh group = (__m512bh)_mm512_loadu_si512(padded + at);
        sums[at / GROUP] = _mm512_reduce_add_ps(_mm512_dpbf16_ps(_mm512_setzero_ps(), group, ones));
    }
}

static long smaller(long a, long b) { return a < b ? a : b; }

/* For each i < count: out[i] [tokens, n] = x[i] [tokens, k] times the transpose of matrix i [n, k], whose planes are
   at planes[most * i] and after, see above. `room` has 68 bytes for each group of columns of each row of x.
   `threads` threads of torch's OpenMP runtime share the pieces.
   Takes: planes as long as BitNested.lengths(n, k), with any bytes: `locate` in planes.py refuses
   others. */
void penstock_products_nested(long count, const uint64_t *planes, const uint64_t *x, const uint64_t *out, long tokens,
                              long n, long k, long most, void *room, int threads)
{
    const long groups = (k + GROUP - 1) / GROUP, wide = groups * GROUP, tiles = (n + TILE - 1) / TILE;
    uint16_t *padded = room;
    float *sums = (float *)(padded + count * tokens * wide);
    for (long row = 0; row < count * tokens; row++)
        prepare((const uint16_t *)x[row / tokens] + row % tokens * k, padded + row * wide, sums + row * groups, k,
                wide);
#pragma omp parallel for schedule(guided) num_threads(threads)
    for (long number = 0; number < count * tiles; number++) {
        const long i = number / tiles, first = number % tiles * TILE;
        const tile from = tile_of(planes + most * i, most, k, first / TILE);
        for (long t = 0; t < tokens; t += MOST)
            multiply_tile((int)smaller(MOST, tokens - t), most == 3, &from, padded + (i * tokens + t) * wide,
                          sums + (i * tokens + t) * groups, (uint16_t *)out[i] + t * n + first, n, k,
                          smaller(TILE, n - first));
    }
}

/* out [rows, k] bfloat16 = the rows from `first`, a multiple of TILE, of a matrix of k columns.
   Takes: planes as long as BitNested.lengths(n, k), with any bytes, and rows inside of them:
   `check_decode` in planes.py refuses others. */
void penstock_decode_nested(const uint64_t *planes, uint16_t *out, long k, long most, long first, long rows,
                            int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row += TILE) {
        const tile from = tile_of(planes, most, k, (first + row) / TILE);
        decode_tile(most == 3, &from, out + row * k, k, smaller(TILE, rows - row));
    }
}

#endif
