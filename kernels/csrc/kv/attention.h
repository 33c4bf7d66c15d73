/* Attention of a few rows to pages of keys and values in bfloat16 or float32.

   A page of keys or values is [heads, tokens, dim]. Scores: sixteen tokens' keys are transposed, so that each lane
   sums the products of one token. Nothing is summed across lanes. Values: each lane is a column, and tokens are added
   in their order, page by page. With pairs of bfloat16 numbers two products are added at a time. No bit depends on the
   number of threads: scores are divided by pages and heads, values by heads and columns. */

#include "../vectors/inputs.h"
#include "passes.h"
#include "transposed.h"

#define MOST_DIM 1024 /* the most numbers in a key */
#define COLUMNS 32    /* columns of values in a piece of work */
#define TOKEN_GROUPS 2 /* of LANES tokens, at a time */
#ifdef HAS_PAIRS
#define KEY_PAIRS 1
#else
#define KEY_PAIRS 0
#endif

struct page_scoring { /* a page and head: out[row * stride + token] = query . keys * scaling */
    const void *keys, *query; /* [tokens, dim], [rows, dim] */
    const void *ahead; /* the next keys, to prefetch */
    float *out;
    long rows, tokens, dim, stride;
    float scaling;
    int brief; /* numbers are bfloat16, and scores are rounded to it */
};

struct page_weighing { /* a page, head and columns: out[row * dim + column] += weights[row * stride + token] * values */
    const void *values, *weights; /* [tokens, dim] */
    const void *ahead; /* the next values, to prefetch */
    float *out;
    long rows, tokens, dim, stride, first, last;
    int brief;
};

/* The processor cannot foresee where the next page lies. Without this prefetch each page starts with a wait. */
INLINE void prefetched(const void *from, long bytes)
{
    for (long at = 0; at < bytes; at += LINE)
        __builtin_prefetch((const char *)from + at);
}

/* A bfloat16 pair, a float32 number, or a bfloat16 number as one. */
INLINE words number_of(const void *from, const int pairs, const int brief)
{
    uint16_t half;
    int32_t word;
    if (brief && !pairs) {
        memcpy(&half, from, sizeof half);
        word = (int32_t)((uint32_t)half << 16);
    } else
        memcpy(&word, from, sizeof word);
    return w_all(word);
}

/* Adds products of bfloat16 pairs, or of float32 numbers. */
INLINE floats added(floats sum, words a, words b, const int pairs)
{
#ifdef HAS_PAIRS
    if (pairs) {
#define ADDED_PART(I) sum.p[I] = part_dot_pairs(sum.p[I], a.p[I], b.p[I]);
        EACH_PART(ADDED_PART)
        return sum;
    }
#endif
    (void)pairs;
    return f_fma(w_bits(a), w_bits(b), sum);
}

INLINE void score_page_rows(const struct page_scoring *now, const int pairs, const int brief, const int rows,
                            words columns[TOKEN_GROUPS][MOST_DIM + 2 * LANES], long row, long token)
{
    const long dim = now->dim, step = pairs ? 2 : 1, row_bytes = dim * (brief ? 2 : 4);
    const char *query = numbers_at(now->query, row * dim, brief);
    floats sums[MOST_ROWS][TOKEN_GROUPS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < TOKEN_GROUPS; g++)
            sums[r][g] = f_all(0);
    long at = 0;
    for (; at + step <= dim; at += step, query += step * (brief ? 2 : 4)) {
        const char *from = query;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++, from += row_bytes) {
            const words number = number_of(from, pairs, brief);
            for (int g = 0; g < TOKEN_GROUPS; g++)
                sums[r][g] = added(sums[r][g], number, columns[g][at / step], pairs);
        }
    }
    for (int r = 0; at < dim && r < rows; r++) /* half of a pair */
        for (int g = 0; g < TOKEN_GROUPS; g++)
            sums[r][g] = added(sums[r][g], w_all(*(const uint16_t *)(query + r * row_bytes)), columns[g][at / step], pairs);
    const floats scaling = f_all(now->scaling);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < TOKEN_GROUPS; g++) {
            const long first = token + g * LANES, left = now->tokens - first;
            const floats score = f_mul(brief ? f_near_brief(sums[r][g]) : sums[r][g], scaling);
            float *to = now->out + (row + r) * now->stride + first;
            if (left > 0)
                f_store_some(to, brief ? f_near_brief(score) : score, left);
        }
}

INLINE void score_numbers(const struct page_scoring *now, const int pairs, const int brief)
{
    const long bytes = brief ? 2 : 4;
    words columns[TOKEN_GROUPS][MOST_DIM + 2 * LANES];
    for (long token = 0; token < now->tokens; token += TOKEN_GROUPS * LANES) {
        prefetched(numbers_at(now->ahead, token * now->dim, brief), TOKEN_GROUPS * LANES * now->dim * bytes);
        for (int g = 0; g < TOKEN_GROUPS; g++) {
            const long from = token + g * LANES;
            transposed(numbers_at(now->keys, from * now->dim, brief), pairs, brief, now->dim, now->tokens - from, columns[g]);
        }
#define SCORE_ROWS(ROWS, ROW) score_page_rows(now, pairs, brief, ROWS, columns, ROW, token)
        IN_PASSES(now->rows, SCORE_ROWS)
    }
}

static APART void score_page(const struct page_scoring *now)
{
    if (now->brief)
        score_numbers(now, KEY_PAIRS, 1);
    else
        score_numbers(now, 0, 0);
}

#ifdef HAS_PAIRS
/* Lanes of two registers: of the first half (0 to 15) and the second half (16 to 31) of 32 columns. */
static const int32_t OF_PAIRS[2][LANES] = {{0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27},
                                           {4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31}};
static const int32_t FROM_PAIRS[2][LANES] = {{0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23},
                                             {8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31}};

/* The sums of 32 columns in the order of values_of, or back. */
INLINE void exchanged(floats halves[2], const int back)
{
    const floats low = halves[0], high = halves[1];
    for (int h = 0; h < 2; h++)
        halves[h].p[0] = part_two_lookup(low.p[0], high.p[0], part_load_words((back ? FROM_PAIRS : OF_PAIRS)[h]));
}
#else
INLINE void exchanged(floats halves[2], const int back) { (void)halves, (void)back; }
#endif

/* The values of a token in 32 columns, of which `counts` exist. As pairs, with those of the next token if there are
   `both`: of columns 0 to 3 of each eight, and of the others. */
INLINE void values_of(const struct page_weighing *now, const int pairs, const int brief, const void *from, int both,
                      const long counts[2], words values[2])
{
#ifdef HAS_PAIRS
    if (pairs) {
        const words one = w_load_some_pairs(from, counts[0] + counts[1]);
        const words next = w_load_some_pairs((const uint16_t *)from + now->dim, both ? counts[0] + counts[1] : 0);
        values[0].p[0] = part_low_halves(one.p[0], next.p[0]);
        values[1].p[0] = part_high_halves(one.p[0], next.p[0]);
        return;
    }
#endif
    (void)now, (void)both, (void)pairs;
    for (int h = 0; h < 2; h++) {
        const void *half = numbers_at(from, h * LANES, brief);
        if (brief)
            values[h] = f_bits(f_load_some_brief(half, counts[h]));
        else
            values[h] = f_bits(f_load_some(half, counts[h]));
    }
}

INLINE void weigh_page_rows(const struct page_weighing *now, const int pairs, const int brief, const int whole,
                            const int rows, long row)
{
    const long there = now->last - now->first, step = pairs ? 2 : 1, bytes = brief ? 2 : 4;
    const long counts[2] = {whole ? LANES : fewer(there, LANES), whole ? LANES : there < LANES ? 0 : there - LANES};
    float *const out = now->out + row * now->dim + now->first;
    floats sums[MOST_ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        for (int h = 0; h < 2; h++) {
            const float *from = out + r * now->dim + h * LANES;
            sums[r][h] = f_load_some(from, counts[h]);
        }
        if (pairs)
            exchanged(sums[r], 0);
    }
    const long row_bytes = now->stride * bytes, tokens = now->tokens;
    const char *weights = numbers_at(now->weights, row * now->stride, brief);
    const char *from = numbers_at(now->values, now->first, brief), *ahead = numbers_at(now->ahead, now->first, brief);
    for (long t = 0; t < tokens; t += step, weights += step * bytes, from += step * now->dim * bytes) {
        const int both = t + 1 < tokens;
        words values[2];
        if (row == 0)
            for (int next = 0; next < step; next++, ahead += now->dim * bytes)
                prefetched(ahead, COLUMNS * bytes);
        values_of(now, pairs, brief, from, both, counts, values);
        const char *at = weights;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++, at += row_bytes) {
            const words weight = pairs && !both ? w_all(*(const uint16_t *)at) : number_of(at, pairs, brief);
            for (int h = 0; h < 2; h++)
                sums[r][h] = added(sums[r][h], weight, values[h], pairs);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        if (pairs)
            exchanged(sums[r], 1);
        for (int h = 0; h < 2; h++) {
            float *to = out + r * now->dim + h * LANES;
            f_store_some(to, sums[r][h], counts[h]);
        }
    }
}

INLINE void weigh_numbers(const struct page_weighing *now, const int pairs, const int brief, const int whole)
{
#define WEIGH_ROWS(ROWS, ROW) weigh_page_rows(now, pairs, brief, whole, ROWS, ROW)
    IN_PASSES(now->rows, WEIGH_ROWS)
}

static APART void weigh_page(const struct page_weighing *now)
{
    const int whole = now->last - now->first == COLUMNS;
    if (now->brief && whole)
        weigh_numbers(now, KEY_PAIRS, 1, 1);
    else if (now->brief)
        weigh_numbers(now, KEY_PAIRS, 1, 0);
    else if (whole)
        weigh_numbers(now, 0, 0, 1);
    else
        weigh_numbers(now, 0, 0, 0);
}

/* out [heads * rows, end], from column `at`: query [heads * rows, dim] times the keys of `count` pages, times
   scaling. Columns from `end` on are left out. dim is at most MOST_DIM.
   Takes: pages of heads * tokens * dim numbers, with any bits. Refuses nothing: kernels/kv/attention.py
   calls it for the dims and dtypes that it has. */
void EXPORT(scores)(long count, const uint64_t *planes, const void *query, float *out, long heads, long rows, long tokens,
                    long dim, long at, long end, float scaling, int brief, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long number = 0; number < count * heads; number++) {
        const long page = number / heads, head = number % heads, first = at + page * tokens;
        const long next = fewer(number + 1, count * heads - 1);
        const struct page_scoring now = {
            .keys = numbers_at((const void *)planes[page], head * tokens * dim, brief),
            .ahead = numbers_at((const void *)planes[next / heads], next % heads * tokens * dim, brief),
            .query = numbers_at(query, head * rows * dim, brief),
            .out = out + head * rows * end + first,
            .rows = rows, .tokens = fewer(tokens, end - first), .dim = dim, .stride = end,
            .scaling = scaling, .brief = brief,
        };
        score_page(&now);
    }
}

/* out [heads * rows, dim] += weights [heads * rows, end], from column `at`, times the values of `count` pages.
   Takes: pages of heads * tokens * dim numbers, with any bits. Refuses nothing, as above. */
void EXPORT(weigh)(long count, const uint64_t *planes, const void *weights, float *out, long heads, long rows, long tokens,
                   long dim, long at, long end, int brief, int threads)
{
    const long tiles = (dim + COLUMNS - 1) / COLUMNS, pieces = heads * tiles;
#pragma omp parallel for num_threads(threads)
    for (long share = 0; share < threads; share++)
        for (long page = 0; page < count; page++)
            for (long piece = pieces * share / threads; piece < pieces * (share + 1) / threads; piece++) {
                const long head = piece / tiles, column = piece % tiles * COLUMNS, first = at + page * tokens;
                const void *next = (const void *)planes[fewer(page + 1, count - 1)];
                const struct page_weighing now = {
                    .values = numbers_at((const void *)planes[page], head * tokens * dim, brief),
                    .ahead = numbers_at(next, head * tokens * dim, brief),
                    .weights = numbers_at(weights, head * rows * end + first, brief),
                    .out = out + head * rows * dim,
                    .rows = rows, .tokens = fewer(tokens, end - first), .dim = dim, .stride = end,
                    .first = column, .last = fewer(column + COLUMNS, dim), .brief = brief,
                };
                weigh_page(&now);
            }
}

#undef MOST_DIM
#undef COLUMNS
#undef TOKEN_GROUPS
#undef KEY_PAIRS
