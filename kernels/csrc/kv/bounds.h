/* Bounds of attention scores from keys of 8 or 4 bits, page by page.

   A summary of a page and head has (W is the head dimension, padded to a multiple of 8):

       int32 count     tokens in it; 0 if its keys are not finite, so that nothing is known of it
       float reach     the greatest norm of a key
       bf16  centre[W]
       bf16  scale[P]  of each token
       bf16  error[P]  norm of each token's rounding error
       (up to a multiple of 64 bytes)
       uint8 numbers   [P / 16][W / 4][16 tokens][4 columns] of 8 bits, or [P / 16][W / 8][16 tokens][4 columns] where a
                       byte has column 8 j + c in its low and 8 j + 4 + c in its high half; number + 128, or + 8

   A key is its centre plus its rotated numbers times its scale plus the error. The query is rotated too, and rounded
   to numbers of 15 bits. Its rounding error, and every other rounding, is added to the bound. */

#include "../vectors/exponential.h"
#include "../vectors/inputs.h"
#include "bound_queries.h"

/* ---- one page, for some queries ---- */

struct bounds_to { /* lower and upper bounds of a page, `apart` numbers between queries */
    float *lower, *upper;
    long apart;
};

INLINE floats f_bounded(floats bound, const struct rule *rule)
{
    if (rule->softcap > 0) {
        const floats power = f_exp(f_mul(bound, f_all(2 / rule->softcap)));
        const floats tanh = f_sub(f_all(1), f_div(f_all(2), f_add(power, f_all(1))));
        const floats capped = f_mul(f_all(rule->softcap), f_add(tanh, f_all(1e-6f)));
        bound = f_choose(f_differs(bound, bound), bound, capped);
    }
    return f_fma(f_all(rule->rounding), f_abs(bound), bound);
}

INLINE words four_of(const void *bytes)
{
    int32_t together;
    memcpy(&together, bytes, sizeof together);
    return w_all(together);
}

/* sums[0] and sums[1] += the products of four columns of sixteen tokens, bytes, with those of a query. */
INLINE void add_bound_columns(words sums[2], words columns, const struct bound_query *q, long j)
{
#ifdef HAS_BYTE_PRODUCTS
    sums[0] = w_dot_bytes(sums[0], columns, four_of(q->high + j));
    sums[1] = w_dot_bytes(sums[1], columns, four_of(q->low + j));
#else
    sums[0] = w_dot_halves(sums[0], w_and(columns, w_all(0xff00ff)), four_of(q->even + j / 2));
    sums[1] = w_dot_halves(sums[1], w_and(w_shr(columns, 8), w_all(0xff00ff)), four_of(q->odd + j / 2));
#endif
}

INLINE words joined(const words sums[2], int32_t offset)
{
#ifdef HAS_BYTE_PRODUCTS
    const words whole = w_add(w_shl(sums[0], 7), sums[1]);
#else
    const words whole = w_add(sums[0], sums[1]);
#endif
    return w_sub(whole, w_all(offset));
}

/* products[t] = the products of query t with 16 tokens. */
INLINE void sixteen(const int queries, const int bits, const struct bound_query *q, const uint8_t *numbers, long wide,
                    words products[BOUND_QUERIES])
{
    const int other = queries <= BOUND_QUERIES / 2; /* few queries: every second step has own sums, none waits */
    words sums[2][BOUND_QUERIES][2];
#pragma GCC unroll 8
    for (int t = 0; t < queries; t++)
        sums[0][t][0] = sums[0][t][1] = sums[1][t][0] = sums[1][t][1] = w_all(0);
    for (long j = 0; j < wide; j += 8) {
        words first, second;
        if (bits == 8) {
            first = w_load(numbers + j * LANES);
            second = w_load(numbers + (j + 4) * LANES);
        } else {
            const words both = w_load(numbers + j / 2 * LANES), half = w_all(0x0f0f0f0f);
            first = w_and(both, half);
            second = w_and(w_shr(both, 4), half);
        }
#pragma GCC unroll 8
        for (int t = 0; t < queries; t++) {
            add_bound_columns(sums[0][t], first, q + t, j);
            add_bound_columns(sums[other][t], second, q + t, j + 4);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < queries; t++)
        products[t] = other ? w_add(joined(sums[0][t], q[t].offset), joined(sums[1][t], 0)) : joined(sums[0][t], q[t].offset);
}

/* product[t] = query t times the page's centre. */
INLINE void centre_products(const int queries, const struct bound_query *q, const struct summary *s, long wide,
                            float product[BOUND_QUERIES])
{
    floats sums[BOUND_QUERIES];
    for (int t = 0; t < queries; t++)
        sums[t] = f_all(0);
    for (long j = 0; j < wide; j += LANES) { /* past the last column a query has zeros, and a summary other data */
        const floats centre = f_load_some_brief(s->centre + j, wide - j);
#pragma GCC unroll 8
        for (int t = 0; t < queries; t++)
            sums[t] = f_fma(f_load(q[t].plain + j), centre, sums[t]);
    }
    for (int t = 0; t < queries; t++)
        product[t] = f_sum(sums[t]);
}

/* What is known of a page's tokens for one query. */
struct known {
    floats bounds[BOUND_TOKENS / LANES], top, worst, largest;
    words strange; /* NaN or infinite: a softcap would hide it */
    float product;
};

/* Adds the tokens of block b, of which those in the mask `there` exist. */
INLINE void add_tokens(struct known *to, int b, words there, words products, floats scale, floats error,
                       const struct bound_query *q, const struct summary *s, const struct rule *rule)
{
    const floats least = f_min(f_mul(f_all(q->norm), error), f_mul(f_all(q->half_sum), scale));
    const floats wrong = f_add(least, f_fma(f_all(q->unresolved), scale, f_all(q->slip * s->reach)));
    const floats score = f_fma(w_to_floats(products), f_mul(f_all(q->step), scale), f_all(to->product));
    const floats most = f_mul(f_all(rule->scaling), f_add(score, wrong));
    const words number = f_less(f_abs(most), f_all(INFINITY));
    to->strange = w_or(to->strange, w_and(there, w_xor(number, w_all(-1))));
    const floats bound = f_bounded(most, rule);
    to->bounds[b] = f_choose(there, bound, f_all(-INFINITY));
    to->top = f_max(to->top, to->bounds[b]);
    to->worst = f_max(to->worst, w_bits(w_and(there, f_bits(f_mul(f_all(rule->scaling), wrong)))));
    to->largest = f_max(to->largest, w_bits(w_and(there, f_bits(f_abs(bound)))));
}

INLINE void page_bounds(const int queries, const int bits, const struct bound_query *q, const struct summary *s, long wide,
                        const struct rule *rule, struct bounds_to to)
{
    struct known known[BOUND_QUERIES];
    float product[BOUND_QUERIES];
    centre_products(queries, q, s, wide, product);
    for (int t = 0; t < queries; t++) {
        known[t].top = f_all(-INFINITY);
        known[t].worst = known[t].largest = f_all(0);
        known[t].strange = w_all(0);
        known[t].product = product[t];
    }
    const int blocks = (s->count + LANES - 1) / LANES;
    for (int b = 0; b < blocks; b++) {
        words products[BOUND_QUERIES];
        sixteen(queries, bits, q, s->numbers + b * LANES * wide * bits / 8, wide, products);
        const words there = w_first(s->count - b * LANES);
        const floats scale = f_load_brief(s->scale + b * LANES), error = f_load_brief(s->error + b * LANES);
        for (int t = 0; t < queries; t++)
            add_tokens(known + t, b, there, products[t], scale, error, q + t, s, rule);
    }
    for (int t = 0; t < queries; t++) {
        const float most = f_most(known[t].top);
        floats sum = f_all(0);
        for (int b = 0; b < blocks; b++)
            sum = f_add(sum, f_exp(f_sub(known[t].bounds[b], f_all(most))));
        if (w_any(known[t].strange))
            unknown(to.lower + t * to.apart, to.upper + t * to.apart);
        else
            conclude(most, f_sum(sum), f_most(known[t].worst), f_most(known[t].largest), rule, to.lower + t * to.apart,
                     to.upper + t * to.apart);
    }
}

#define CASE(N)                                                                                                        \
    case N:                                                                                                            \
        if (bits == 8)                                                                                                 \
            page_bounds(N, 8, q, s, wide, rule, to);                                                                   \
        else                                                                                                           \
            page_bounds(N, 4, q, s, wide, rule, to);                                                                   \
        break;

static APART void some_bounds(int queries, int bits, const struct bound_query *q, const struct summary *s, long wide,
                              const struct rule *rule, struct bounds_to to)
{
    switch (queries) {
        BOUND_CASES(CASE)
    }
}

#undef CASE

/* lower and upper [heads, rows, count]: bounds of the logarithm of the sum of exp(score) over the tokens of each of
   `count` pages, whose summaries are `stride` bytes apart. query is [heads, rows, dim]. `room` has heads * rows *
   BOUND_ROOM bytes. dim is at most 512, tokens at most 256.
   Takes: `count` summaries `stride` bytes apart, with any bytes: one that tells more tokens than a page has
   tells nothing. quantised_keys.py refuses larger dim and tokens. */
void EXPORT(bounds)(const uint8_t *summaries, long stride, long count, const float *query, long heads, long rows, long tokens,
                    long dim, int bits, float scaling, float softcap, float rounding, void *room, float *lower, float *upper,
                    int threads)
{
    const long wide = whole_multiple(dim, 8), bytes = summary_bytes(tokens, wide, bits);
    const long shares = (count + BOUND_PAGES - 1) / BOUND_PAGES;
    const struct rule rule = {scaling, softcap, rounding};
    struct bound_query *queries = room;
    for (long row = 0; row < heads * rows; row++)
        prepare_query(queries + row, query + row * dim, dim, wide, bits);
#pragma omp parallel for schedule(guided) num_threads(threads) if (threads > 1)
    for (long share = 0; share < heads * shares; share++) {
        const long head = share / shares, first = share % shares * BOUND_PAGES;
        const struct bound_query *own = queries + head * rows;
        for (long page = first; page < first + BOUND_PAGES && page < count; page++) {
            const struct summary s = summary_of(summaries + page * stride + head * bytes, tokens, wide);
            for (long row = 0; row < rows; row += BOUND_QUERIES) {
                const long few = fewer(rows - row, BOUND_QUERIES), at = (head * rows + row) * count + page;
                const struct bounds_to to = {lower + at, upper + at, count};
                if (s.count > 0)
                    some_bounds((int)few, bits, own + row, &s, wide, &rule, to);
                else
                    for (long i = 0; i < few; i++)
                        unknown(to.lower + i * count, to.upper + i * count);
            }
        }
    }
}
