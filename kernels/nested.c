/* Products of a few rows with several bit-nested matrices in one call, each with as many of its planes as are there.

   How the planes lie and what their numbers mean: formats/nested.py. One 32-bit lane belongs to one of the sixteen rows of
   a tile, and holds codes of neighbouring columns in its halves, so that a shift and a look-up make the bfloat16 pairs that
   VDPBF16PS takes. All codes are small integers, exact in bfloat16; steps, offsets and scales are applied to the float32
   sums of each group. */

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include "lanes.h"

#include <string.h>

#define TILE LANES  /* matrix rows */
#define GROUP 32    /* columns with one step and offset */
#define REGISTER 64 /* bytes */
#define MOST 4      /* rows of inputs in one pass over the matrix */
#define AHEAD 2048  /* bytes from memory on the way */

typedef enum { HALF, WHOLE, QUARTER } depth; /* how many bits of a number are there: 4, 8 or 2 */

/* The planes of one tile. `low` is null in the format of two planes; `rest` is read only if the depth is WHOLE. */
typedef struct {
    const uint8_t *head, *codes, *low, *rest;
} tile;

/* bfloat16 of factor * (i % count) for the 32 values of the five bits that a look-up goes by. */
INLINE __m512i integers(int count, int factor)
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

/* Number j of each half word, `bits` wide, comes to lie at bit `to`, among bits of other numbers. */
INLINE __m512i placed(__m512i word, const int bits, const int j, const int to)
{
    const int by = bits * j - to;
    return by > 0 ? _mm512_srli_epi16(word, by) : by < 0 ? _mm512_slli_epi16(word, -by) : word;
}

/* Pairs of columns j of the codes b of four bits, from bit `to` on; all bits besides are zero only where `clean`. */
INLINE __m512i nibbles(const int split, __m512i codes, __m512i low, const int j, const int to, const int clean)
{
    const __m512i all = _mm512_set1_epi16((short)(15 << to));
    __m512i pair = placed(codes, 4, j, to);
    if (split) /* bits of the first above those of the second */
        pair = _mm512_ternarylogic_epi32(placed(codes, 2, j, to + 2), placed(low, 2, j, to),
                                         _mm512_set1_epi16((short)(12 << to)), 0xe4);
    return clean ? _mm512_and_si512(pair, all) : pair;
}

INLINE __m512 floats(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)); }

/* One register of codes, 8 columns or 16 if `split` or of two bits, times those columns of x [tokens, wide]. */
INLINE void step(const int tokens, const depth deep, const int split, const tile *from, long number, __m512i steps,
                 const uint16_t *x, long wide, __m512 sum[MOST][2])
{
    const int bits = split ? 2 : 4;
    const uint8_t *at = from->codes + number * REGISTER;
    const __m512i codes = _mm512_loadu_si512(at);
    const __m512i low = split && deep != QUARTER ? _mm512_loadu_si512(from->low + number * REGISTER) : codes;
    const __m512i ones = integers(deep == QUARTER ? 4 : 16, 1), sixteens = integers(16, 16);
    _mm_prefetch((const char *)at + AHEAD, _MM_HINT_T0);
    if (split && deep != QUARTER)
        _mm_prefetch((const char *)from->low + number * REGISTER + AHEAD, _MM_HINT_T0);
    __m512i rest = codes;
#pragma GCC unroll 8 /* else the sums are kept in memory */
    for (int j = 0; j < 16 / bits; j++) {
        __m512i pair, above;
        if (deep == WHOLE) {
            if (j % 4 == 0) {
                const uint8_t *next = from->rest + (number * (split ? 2 : 1) + j / 4) * REGISTER;
                rest = _mm512_loadu_si512(next);
                _mm_prefetch((const char *)next + AHEAD, _MM_HINT_T0);
            }
            /* (b << 11) * step, rounded, >> 15: the nearest integer to b * step / 16 */
            const __m512i near = _mm512_mulhrs_epi16(nibbles(split, codes, low, j, 11, 1), steps);
            const __m512i whole = _mm512_add_epi16(near, nibbles(0, rest, rest, j % 4, 0, 1));
            pair = _mm512_permutexvar_epi16(whole, ones);
            above = _mm512_permutexvar_epi16(_mm512_srli_epi16(whole, 4), sixteens);
        } else if (deep == HALF)
            pair = _mm512_permutexvar_epi16(nibbles(split, codes, low, j, 0, 0), ones);
        else
            pair = _mm512_permutexvar_epi16(placed(codes, 2, j, 0), ones);
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

/* x [tokens, wide], sums of its groups [tokens, groups], times the rows of one tile, `there` of them, into out
   [tokens, n]. */
INLINE void multiply(const int tokens, const depth deep, const int split, const tile *from, const uint16_t *x,
                     const float *sums, uint16_t *out, long n, long k, long there)
{
    const long columns = split ? 16 : 8, groups = (k + GROUP - 1) / GROUP, wide = groups * GROUP;
    const long registers = (k + columns - 1) / columns, each = GROUP / columns;
    const uint8_t *levels = from->head + 2 * TILE * (groups + 1);
    __m512 total[MOST];
    for (int t = 0; t < tokens; t++)
        total[t] = _mm512_setzero_ps();
    for (long g = 0; g < groups; g++) {
        const __m128i *pair = (const __m128i *)(from->head + 2 * TILE * (g + 1));
        const __m512i integer = _mm512_cvtepu8_epi32(_mm_loadu_si128(pair));
        const __m512i steps = _mm512_or_si512(integer, _mm512_slli_epi32(integer, 16));
        __m512 offset = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(pair + 1)));
        __m512 by = _mm512_mul_ps(_mm512_cvtepi32_ps(integer), _mm512_set1_ps(1 / 16.f));
        if (deep == WHOLE) { /* what is left is stored with 8 added */
            offset = _mm512_sub_ps(offset, _mm512_set1_ps(8));
            by = _mm512_set1_ps(1);
        } else if (deep == QUARTER) {
            const __m128i eight = _mm_loadl_epi64((const __m128i *)(levels + g * TILE / 2));
            const __m128i level = _mm_unpacklo_epi64(eight, _mm_srli_epi16(eight, 4));
            const __m512 centre = _mm512_fmadd_ps(floats(_mm_and_si128(level, _mm_set1_epi8(3))), _mm512_set1_ps(.5f),
                                                  _mm512_set1_ps(6.75f));
            const __m512 spread = _mm512_fmadd_ps(floats(_mm_and_si128(_mm_srli_epi16(level, 2), _mm_set1_epi8(3))),
                                                  _mm512_set1_ps(.5f), _mm512_set1_ps(3.25f));
            offset = _mm512_fmadd_ps(by, _mm512_fnmadd_ps(spread, _mm512_set1_ps(1.5f), centre), offset);
            by = _mm512_mul_ps(by, spread);
        }
        __m512 sum[MOST][2];
        for (int t = 0; t < tokens; t++)
            sum[t][0] = sum[t][1] = _mm512_setzero_ps();
        const uint16_t *inputs = x + g * GROUP;
        if ((g + 1) * each <= registers)
            for (int i = 0; i < (split ? 2 : 4); i++)
                step(tokens, deep, split, from, g * each + i, steps, inputs + i * columns, wide, sum);
        else
            for (long i = 0; g * each + i < registers; i++)
                step(tokens, deep, split, from, g * each + i, steps, inputs + i * columns, wide, sum);
        for (int t = 0; t < tokens; t++) {
            total[t] = _mm512_fmadd_ps(by, _mm512_add_ps(sum[t][0], sum[t][1]), total[t]);
            total[t] = _mm512_fmadd_ps(offset, _mm512_set1_ps(sums[t * groups + g]), total[t]);
        }
    }
    const __m512i scale = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from->head)), 16);
    const __mmask16 mask = (__mmask16)((1u << there) - 1);
    for (int t = 0; t < tokens; t++) {
        const __m512 scaled = _mm512_mul_ps(total[t], _mm512_castsi512_ps(scale));
        _mm256_mask_storeu_epi16(out + t * n, mask, (__m256i)_mm512_cvtneps_pbh(scaled));
    }
}

#define CASE(T)                                                                                                        \
    case T:                                                                                                            \
        if (from->low)                                                                                                 \
            from->rest ? multiply(T, WHOLE, 1, from, x, sums, out, n, k, there)                                        \
                       : multiply(T, HALF, 1, from, x, sums, out, n, k, there);                                        \
        else if (split)                                                                                                \
            multiply(T, QUARTER, 1, from, x, sums, out, n, k, there);                                                  \
        else                                                                                                           \
            from->rest ? multiply(T, WHOLE, 0, from, x, sums, out, n, k, there)                                        \
                       : multiply(T, HALF, 0, from, x, sums, out, n, k, there);                                        \
        break;

TARGET static void piece(int tokens, int split, const tile *from, const uint16_t *x, const float *sums, uint16_t *out,
                         long n, long k, long there)
{
    switch (tokens) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
    }
}

/* One row of inputs [k], with zeros up to `wide`, and the sum of each group of it. */
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

/* For each i < count: out[i] [tokens, n] = x[i] [tokens, k] times the transpose of matrix i [n, k], whose planes lie at
   planes[most * i], from the first on; 0 is one that is not there. `most` is 2 for format nested, 3 for stacked. `room`
   has 68 bytes for each group of columns of each row of x. The pieces are shared out over `threads` threads of the
   OpenMP runtime that torch uses. */
void penstock_nested(long count, const uint64_t *planes, const uint64_t *x, const uint64_t *out, long tokens, long n,
                     long k, long most, void *room, int threads)
{
    const int split = most == 3;
    const long columns = split ? 16 : 8, groups = (k + GROUP - 1) / GROUP, wide = groups * GROUP;
    const long body = (k + columns - 1) / columns * REGISTER, tiles = (n + TILE - 1) / TILE;
    const long head = (2 * TILE * (groups + 1) + (split ? groups * TILE / 2 : 0) + REGISTER - 1) / REGISTER * REGISTER;
    uint16_t *padded = room;
    float *sums = (float *)(padded + count * tokens * wide);
    for (long row = 0; row < count * tokens; row++)
        prepare((const uint16_t *)x[row / tokens] + row % tokens * k, padded + row * wide, sums + row * groups, k, wide);
#pragma omp parallel for schedule(guided) num_threads(threads)
    for (long number = 0; number < count * tiles; number++) {
        const long i = number / tiles, at = number % tiles, there = n - at * TILE < TILE ? n - at * TILE : TILE;
        const uint8_t *const *plane = (const uint8_t *const *)(planes + most * i);
        const uint8_t *base = plane[0] + at * (head + body), *low = split ? plane[1] : 0, *rest = plane[most - 1];
        const tile from = {base, base + head, low ? low + at * body : 0, rest ? rest + at * body * (split ? 2 : 1) : 0};
        for (long t = 0; t < tokens; t += MOST)
            piece((int)(tokens - t < MOST ? tokens - t : MOST), split, &from, padded + (i * tokens + t) * wide,
                  sums + (i * tokens + t) * groups, (uint16_t *)out[i] + t * n + at * TILE, n, k, there);
    }
}

#endif
