/* Attention of one query to the keys of its sequence, with the bits of torch's flash attention for processors.

   torch multiplies queries of one row by a loop of its own, in which a product of 64 numbers takes 50 ns. The order of
   its sums is kept: a score adds every fourth product, then the first to the third sum and the second to the fourth;
   values are added by fours; the tokens come in blocks, each with the greatest score so far. What depends on torch's
   build and level is an argument: how many lanes its registers have, and whether it fuses the sum of blocks. */

#include "../bfloat16.h"
#include "../kv/transposed.h"
#include "../vectors/exponential.h"

#define TOKENS 512   /* of a block */
#define ROW_DIM 256  /* the most numbers of a key */
#define ROWS_ONCE 4  /* queries that share keys and values, at a time */

struct rows_attention { /* a few queries with the same keys and values */
    const uint16_t *query, *keys, *values; /* [rows, dim], [tokens, dim] */
    uint16_t *out;                         /* [rows, dim] */
    float *sums;                           /* [rows], or NULL: the sum of all weights */
    long tokens, dim;
    float scaling;
    int lanes, fused; /* of torch: 16 or 8; whether the sum of blocks is rounded once */
};

struct rows_state {
    float weights[ROWS_ONCE][TOKENS]; /* scores, then weights */
    float out[ROWS_ONCE][ROW_DIM];
    float most[ROWS_ONCE], sum[ROWS_ONCE];
};

/* Scores of up to LANES tokens. */
INLINE void score_tokens(const struct rows_attention *now, struct rows_state *state, const words *columns, long token,
                         long there, const int rows)
{
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        const uint16_t *query = now->query + r * now->dim;
        floats sums[4] = {f_all(0), f_all(0), f_all(0), f_all(0)};
        for (long at = 0; at < now->dim; at += 4)
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                sums[i] = f_fma(w_bits(w_all((int32_t)((uint32_t)query[at + i] << 16))), w_bits(columns[at + i]), sums[i]);
        const floats sum = f_add(f_add(sums[0], sums[2]), f_add(sums[1], sums[3]));
        f_store_some(state->weights[r] + token, f_mul(sum, f_all(now->scaling)), there);
    }
}

/* The greatest of `count` scores and `most`; NaN if any of them is not finite. */
INLINE float greatest_score(const float *scores, long count, float most)
{
    floats top = f_all(most), strange = f_all(0);
    for (long t = 0; t < count; t += LANES) {
        const words there = w_first(count - t);
        const floats some = f_load(scores + t);
        strange = f_add(strange, w_bits(w_and(there, f_bits(f_sub(some, some)))));
        top = f_max(top, f_choose(there, some, f_all(most)));
    }
    return f_most(top) + f_sum(strange);
}

/* The weights of a row's block from its scores, rounded to bfloat16; its sum and greatest score go on. Returns the factor
   for what was summed before; NaN if a score is not finite. */
INLINE float weigh_scores(const struct rows_attention *now, float *weights, long count, float *most, float *sum)
{
    const long whole = count / now->lanes * now->lanes;
    const float greatest = greatest_score(weights, count, *most);
    floats sums[2] = {f_all(0), f_all(0)};
    for (long t = 0; t < whole; t += LANES) {
        const words there = w_first(whole - t);
        const floats score = f_load(weights + t), weight = f_exp_brief(f_sub(score, f_all(greatest)));
        const int which = now->lanes == LANES ? t / LANES % 2 : 0;
        sums[which] = f_add(sums[which], w_bits(w_and(there, f_bits(weight))));
        f_store(weights + t, f_choose(there, f_near_brief(weight), score));
    }
    float total = f_sum(f_add(sums[0], sums[1]));
    for (long t = whole; t < count; t++) {
        const float weight = expf(weights[t] - greatest);
        total += weight;
        weights[t] = widened(rounded(weight));
    }
    const float factor = expf(*most - greatest), before = factor * *sum;
    *sum = now->fused ? fmaf(factor, *sum, total) : total + before;
    *most = greatest;
    return factor;
}

/* Adds the values of `count` tokens from `first` on to sixteen columns. */
INLINE void weigh_values(const struct rows_attention *now, struct rows_state *state, long first, long count, long column,
                         const int rows)
{
    const uint16_t *from = now->values + first * now->dim + column;
    floats sums[ROWS_ONCE];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        sums[r] = f_load(state->out[r] + column);
    long t = 0;
    for (; t + 4 <= count; t += 4, from += 4 * now->dim) {
        floats values[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            values[i] = f_load_brief(from + i * now->dim);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const float *weights = state->weights[r] + t;
            const floats even = f_fma(f_all(weights[0]), values[0], f_mul(f_all(weights[2]), values[2]));
            const floats odd = f_fma(f_all(weights[1]), values[1], f_mul(f_all(weights[3]), values[3]));
            sums[r] = f_add(sums[r], f_add(even, odd));
        }
    }
    for (long last = count - 1; last >= t; last--) /* the last come first */
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            sums[r] = f_fma(f_all(state->weights[r][last]), f_load_brief(from + (last - t) * now->dim), sums[r]);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        f_store(state->out[r] + column, sums[r]);
}

/* Returns whether all scores are finite. */
INLINE int attend_rows(const struct rows_attention *now, const int rows)
{
    struct rows_state state;
    words columns[ROW_DIM];
    for (int r = 0; r < rows; r++)
        state.most[r] = -INFINITY, state.sum[r] = 0;
    for (long first = 0; first < now->tokens; first += TOKENS) {
        const long count = now->tokens - first < TOKENS ? now->tokens - first : TOKENS;
        for (long token = 0; token < count; token += LANES) {
            transposed(now->keys + (first + token) * now->dim, 0, 1, now->dim, count - token, columns);
            score_tokens(now, &state, columns, token, count - token, rows);
        }
        for (int r = 0; r < rows; r++) {
            const float factor = weigh_scores(now, state.weights[r], count, &state.most[r], &state.sum[r]);
            if (factor != factor)
                return 0;
            for (long column = 0; column < now->dim; column += LANES)
                f_store(state.out[r] + column, first ? f_mul(f_load(state.out[r] + column), f_all(factor)) : f_all(0));
        }
        for (long column = 0; column < now->dim; column += LANES)
            weigh_values(now, &state, first, count, column, rows);
    }
    for (int r = 0; r < rows; r++) {
        const floats factor = f_all(1 / (state.sum[r] == 0 ? 1 : state.sum[r]));
        for (long column = 0; column < now->dim; column += LANES)
            f_store_brief(now->out + r * now->dim + column, f_mul(f_load(state.out[r] + column), factor), LANES);
        if (now->sums)
            now->sums[r] = state.sum[r];
    }
    return 1;
}

static APART int attend_few(const struct rows_attention *now, long rows)
{
    return rows == 4   ? attend_rows(now, 4)
           : rows == 3 ? attend_rows(now, 3)
           : rows == 2 ? attend_rows(now, 2)
                       : attend_rows(now, 1);
}

/* out [heads * rows, dim]: attention of query [heads * rows, dim] to keys and values [heads, tokens, dim], all of
   bfloat16, scores times `scaling`. The numbers of a head lie together, and heads lie
   `keys_apart` and `values_apart` numbers from each other. `sums` [heads * rows] is filled if it is not NULL.
   `lanes` and `fused` as in rows_attention. Returns whether all scores are finite: of others torch makes what it likes.
   Takes: any bits; dim, a multiple of sixteen, of at most 256; at least one token. Refuses nothing:
   kernels/modules/attention_row.py calls it so. */
int EXPORT(attend_row)(const uint16_t *query, const uint16_t *keys, const uint16_t *values, uint16_t *out, float *sums,
                       long heads, long rows, long tokens, long dim, long keys_apart, long values_apart, float scaling,
                       int lanes, int fused, int threads)
{
    const long passes = (rows + ROWS_ONCE - 1) / ROWS_ONCE;
    int finite = 1;
#pragma omp parallel for num_threads(threads) if (threads > 1) reduction(& : finite)
    for (long piece = 0; piece < heads * passes; piece++) {
        const long head = piece / passes, row = piece % passes * ROWS_ONCE, at = head * rows + row;
        const struct rows_attention now = {
            .query = query + at * dim, .out = out + at * dim, .sums = sums ? sums + at : NULL,
            .keys = keys + head * keys_apart, .values = values + head * values_apart,
            .tokens = tokens, .dim = dim, .scaling = scaling, .lanes = lanes, .fused = fused,
        };
        finite &= attend_few(&now, rows - row < ROWS_ONCE ? rows - row : ROWS_ONCE);
    }
    return finite;
}

#undef TOKENS
#undef ROW_DIM
#undef ROWS_ONCE
