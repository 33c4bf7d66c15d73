/* Attention of a few rows to pages of keys and values in bfloat16 or float32.

   A page of keys or values is [heads, tokens, dim]. Scores: sixteen tokens' keys are transposed, so that each lane
   of a register sums the products of one token. Nothing is summed across lanes. Values: each lane is a column, and
   tokens are added in their order, page by page. With VDPBF16PS two products are added at a time. No bit depends on
   the number of threads: scores are divided by pages and heads, values by heads and columns. */

#include "bfloat16.h"
#include "target.h"

#define MOST_DIM 1024 /* the most numbers in a key */
#define TILE 32       /* columns of values in a piece of work */

struct scoring { /* a page and head: out[row * stride + token] = query . keys * scaling */
    const void *keys, *query; /* [tokens, dim], [rows, dim] */
    const void *ahead; /* the next keys, to prefetch */
    float *out;
    long rows, tokens, dim, stride;
    float scaling;
    int brief; /* numbers are bfloat16, and scores are rounded to it */
};

struct weighing { /* a page, head and columns: out[row * dim + column] += weights[row * stride + token] * values */
    const void *values, *weights; /* [tokens, dim] */
    const void *ahead; /* the next values, to prefetch */
    float *out;
    long rows, tokens, dim, stride, first, last;
    int brief;
};

static inline long smaller(long a, long b) { return a < b ? a : b; }

static inline float number_at(const void *from, long at, const int brief)
{
    return brief ? widened(((const uint16_t *)from)[at]) : ((const float *)from)[at];
}

static inline const void *numbers_at(const void *from, long at, int brief)
{
    return (const char *)from + at * (brief ? 2 : 4);
}

static inline float scaled(float sum, float scaling, int brief)
{
    return brief ? widened(rounded(widened(rounded(sum)) * scaling)) : sum * scaling;
}

#define WIDTH 16
#define NAME(x) x##_narrow
#include "attention_lanes.h"
#undef WIDTH
#undef NAME

#if defined(__x86_64__) && defined(__GNUC__)
#define PENSTOCK_X86

BEGIN_TARGET("avx2,fma")
#define WIDTH 32
#define NAME(x) x##_middle
#include "attention_lanes.h"
#undef WIDTH
#undef NAME
END_TARGET

#include "lanes.h"

#define LINE 64 /* bytes of a cache line */
#define MOST 8  /* rows that are computed at a time */
#define GROUPS 2 /* of LANES tokens, at a time */

INLINE __mmask16 lanes_left(long left) { return left >= LANES ? 0xffff : left > 0 ? (__mmask16)((1 << left) - 1) : 0; }

INLINE __m512 as_bfloat16(__m512 numbers)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(numbers)), 16));
}

/* The processor cannot foresee where the next page lies. Without this prefetch each page starts with a wait. */
INLINE void prefetched(const void *from, long bytes)
{
    for (long at = 0; at < bytes; at += LINE)
        _mm_prefetch((const char *)from + at, _MM_HINT_T0);
}

/* Adds products of bfloat16 pairs, or of float32 numbers. */
INLINE __m512 added(__m512 sum, __m512i a, __m512i b, const int brief)
{
    return brief ? _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b)
                 : _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
}

/* Transposes up to LANES keys of `words` words of four bytes: columns [words][LANES]. */
INLINE void transposed(const uint32_t *keys, long words, long there, __m512i *columns)
{
    for (long at = 0; at < words; at += LANES) {
        const __mmask16 mask = lanes_left(words - at);
        __m512i row[LANES], column[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            row[i] = _mm512_maskz_loadu_epi32(i < there ? mask : 0, keys + i * words + at);
        transpose(row, column);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            columns[at + i] = column[i];
    }
}

INLINE void score_rows_wide(const struct scoring *now, const int brief, const int rows, long words,
                            __m512i columns[GROUPS][MOST_DIM], long row, long token)
{
    const uint32_t *query = (const uint32_t *)now->query + row * words;
    __m512 sums[MOST][GROUPS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < GROUPS; g++)
            sums[r][g] = _mm512_setzero_ps();
    for (long w = 0; w < words; w++) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const __m512i number = _mm512_set1_epi32((int)query[r * words + w]);
            for (int g = 0; g < GROUPS; g++)
                sums[r][g] = added(sums[r][g], number, columns[g][w], brief);
        }
    }
    const __m512 scaling = _mm512_set1_ps(now->scaling);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < GROUPS; g++) {
            const long at = token + g * LANES;
            const __m512 plain = brief ? as_bfloat16(sums[r][g]) : sums[r][g];
            const __m512 score = _mm512_mul_ps(plain, scaling);
            _mm512_mask_storeu_ps(now->out + (row + r) * now->stride + at, lanes_left(now->tokens - at),
                                  brief ? as_bfloat16(score) : score);
        }
}

INLINE void score_numbers_wide(const struct scoring *now, const int brief)
{
    const long words = now->dim / (brief ? 2 : 1);
    __m512i columns[GROUPS][MOST_DIM];
    for (long token = 0; token < now->tokens; token += GROUPS * LANES) {
        prefetched(numbers_at(now->ahead, token * now->dim, brief), GROUPS * LANES * words * 4);
        for (int g = 0; g < GROUPS; g++) {
            const long from = token + g * LANES;
            transposed((const uint32_t *)now->keys + from * words, words, now->tokens - from, columns[g]);
        }
        long row = 0;
        for (; row + MOST <= now->rows; row += MOST)
            score_rows_wide(now, brief, MOST, words, columns, row, token);
        for (; row + 2 <= now->rows; row += 2)
            score_rows_wide(now, brief, 2, words, columns, row, token);
        if (row < now->rows)
            score_rows_wide(now, brief, 1, words, columns, row, token);
    }
}

TARGET static void score_wide(const struct scoring *now)
{
    if (now->brief)
        score_numbers_wide(now, 1);
    else
        score_numbers_wide(now, 0);
}

/* Columns of two tokens as pairs: pairs[0] has columns 0 to 3 of each eight, pairs[1] the others. */
INLINE void paired(const uint16_t *values, long dim, __mmask32 mask, int both, __m512i pairs[2])
{
    const __m512i one = _mm512_maskz_loadu_epi16(mask, values);
    const __m512i next = _mm512_maskz_loadu_epi16(both ? mask : 0, values + dim);
    pairs[0] = _mm512_unpacklo_epi16(one, next);
    pairs[1] = _mm512_unpackhi_epi16(one, next);
}

/* Source and destination lanes of the first half (0 to 15) and the second half (16 to 31) of 32 columns. */
static const int32_t APART[2][LANES] = {{0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27},
                                        {4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31}};
static const int32_t BACK[2][LANES] = {{0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23},
                                       {8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31}};

INLINE void exchanged(__m512 halves[2], const int32_t order[2][LANES])
{
    const __m512 low = halves[0], high = halves[1];
    for (int h = 0; h < 2; h++)
        halves[h] = _mm512_permutex2var_ps(low, _mm512_loadu_si512(order[h]), high);
}

INLINE void weigh_rows_wide(const struct weighing *now, const int brief, const int rows, long row)
{
    const long columns = now->last - now->first;
    const __mmask16 masks[2] = {lanes_left(columns), lanes_left(columns - LANES)};
    float *const out = now->out + row * now->dim + now->first;
    __m512 sums[MOST][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        for (int h = 0; h < 2; h++)
            sums[r][h] = _mm512_maskz_loadu_ps(masks[h], out + r * now->dim + h * LANES);
        if (brief)
            exchanged(sums[r], APART);
    }
    for (long t = 0; t < now->tokens; t += brief ? 2 : 1) {
        const int both = t + 1 < now->tokens;
        const void *from = numbers_at(now->values, t * now->dim + now->first, brief);
        __m512i values[2];
        if (row == 0)
            for (int next = 0; next < (brief ? 2 : 1); next++)
                prefetched(numbers_at(now->ahead, (t + next) * now->dim + now->first, brief), TILE * (brief ? 2 : 4));
        if (brief)
            paired(from, now->dim, (__mmask32)masks[0] | (__mmask32)masks[1] << LANES, both, values);
        else
            for (int h = 0; h < 2; h++)
                values[h] = _mm512_maskz_loadu_epi32(masks[h], (const float *)from + h * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const void *at = numbers_at(now->weights, (row + r) * now->stride + t, brief);
            int32_t weight = *(const uint16_t *)at;
            if (!brief || both)
                __builtin_memcpy(&weight, at, sizeof weight);
            for (int h = 0; h < 2; h++)
                sums[r][h] = added(sums[r][h], _mm512_set1_epi32(weight), values[h], brief);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        if (brief)
            exchanged(sums[r], BACK);
        for (int h = 0; h < 2; h++)
            _mm512_mask_storeu_ps(out + r * now->dim + h * LANES, masks[h], sums[r][h]);
    }
}

INLINE void weigh_numbers_wide(const struct weighing *now, const int brief)
{
    long row = 0;
    for (; row + MOST <= now->rows; row += MOST)
        weigh_rows_wide(now, brief, MOST, row);
    for (; row + 2 <= now->rows; row += 2)
        weigh_rows_wide(now, brief, 2, row);
    if (row < now->rows)
        weigh_rows_wide(now, brief, 1, row);
}

TARGET static void weigh_wide(const struct weighing *now)
{
    if (now->brief)
        weigh_numbers_wide(now, 1);
    else
        weigh_numbers_wide(now, 0);
}

#endif

enum { NARROW, MIDDLE, WIDEST };

/* The best kernel for this processor. */
int penstock_attention_level(void)
{
#ifdef PENSTOCK_X86
    if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return WIDEST;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return MIDDLE;
#endif
    return NARROW;
}

static void score(const struct scoring *now, int level)
{
#ifdef PENSTOCK_X86
    if (level == WIDEST && !(now->brief && now->dim % 2))
        return score_wide(now);
    if (level >= MIDDLE)
        return score_middle(now);
#endif
    score_narrow(now);
}

static void weigh(const struct weighing *now, int level)
{
#ifdef PENSTOCK_X86
    if (level == WIDEST)
        return weigh_wide(now);
    if (level >= MIDDLE)
        return weigh_middle(now);
#endif
    weigh_narrow(now);
}

/* out [heads * rows, end], from column `at`: query [heads * rows, dim] times the keys of `count` pages, times
   scaling. Columns from `end` on are left out. dim is at most MOST_DIM.
   Takes: pages of heads * tokens * dim numbers, with any bits. Refuses nothing: kernels/kv/attention.py
   calls it for the dims and dtypes that it has. */
void penstock_scores(long count, const uint64_t *planes, const void *query, float *out, long heads, long rows,
                     long tokens, long dim, long at, long end, float scaling, int brief, int level, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long number = 0; number < count * heads; number++) {
        const long page = number / heads, head = number % heads, first = at + page * tokens;
        const long next = smaller(number + 1, count * heads - 1);
        const struct scoring now = {
            .keys = numbers_at((const void *)planes[page], head * tokens * dim, brief),
            .ahead = numbers_at((const void *)planes[next / heads], next % heads * tokens * dim, brief),
            .query = numbers_at(query, head * rows * dim, brief),
            .out = out + head * rows * end + first,
            .rows = rows, .tokens = smaller(tokens, end - first), .dim = dim, .stride = end,
            .scaling = scaling, .brief = brief,
        };
        score(&now, level);
    }
}

/* out [heads * rows, dim] += weights [heads * rows, end], from column `at`, times the values of `count` pages.
   Takes: pages of heads * tokens * dim numbers, with any bits. Refuses nothing, as above. */
void penstock_weigh(long count, const uint64_t *planes, const void *weights, float *out, long heads, long rows,
                    long tokens, long dim, long at, long end, int brief, int level, int threads)
{
    const long tiles = (dim + TILE - 1) / TILE, pieces = heads * tiles;
#pragma omp parallel for num_threads(threads)
    for (long share = 0; share < threads; share++)
        for (long page = 0; page < count; page++)
            for (long piece = pieces * share / threads; piece < pieces * (share + 1) / threads; piece++) {
                const long head = piece / tiles, column = piece % tiles * TILE, first = at + page * tokens;
                const void *next = (const void *)planes[smaller(page + 1, count - 1)];
                const struct weighing now = {
                    .values = numbers_at((const void *)planes[page], head * tokens * dim, brief),
                    .ahead = numbers_at(next, head * tokens * dim, brief),
                    .weights = numbers_at(weights, head * rows * end + first, brief),
                    .out = out + head * rows * dim,
                    .rows = rows, .tokens = smaller(tokens, end - first), .dim = dim, .stride = end,
                    .first = column, .last = smaller(column + TILE, dim), .brief = brief,
                };
                weigh(&now, level);
            }
}
