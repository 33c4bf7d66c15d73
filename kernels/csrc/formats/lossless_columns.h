/* Products of a few rows with a tile of the lossless format, in the orders of torch's own product: those of
   ../products/bfloat16.h. A part of lossless.h.

   There a sum has columns of a row in its lanes. A decoded tile has its rows there. So the sums of a tile are turned:
   sums[t][c][i] holds, for sixteen rows, what lane i of number c in row_sums holds for one. They are turned back at
   the end. */

#define SPAN 256 /* columns that are decoded before they are multiplied: they stay in the first cache */

typedef floats turned_sums[BRIEF_MOST][4][LANES];

/* Adds `there` decoded columns, whole blocks of them, whose inputs begin at x. */
INLINE void add_turned(const int tokens, const int block, const words *pairs, const float *x, long k, long there,
                       turned_sums sums)
{
#pragma GCC unroll 4
    for (int c = 0; c < block / LANES; c++)
        for (int i = 0; i < LANES; i++) {
            floats sum[BRIEF_MOST];
#pragma GCC unroll 4
            for (int t = 0; t < tokens; t++)
                sum[t] = sums[t][c][i];
            for (long at = 0; at < there; at += block) {
                const words both = pairs[at / 2 + c / 2 * LANES + i];
                const floats some = c % 2 ? odd_columns(both) : even_columns(both);
#pragma GCC unroll 4
                for (int t = 0; t < tokens; t++)
                    sum[t] = f_fma(some, f_all(x[t * k + at + c * LANES + i]), sum[t]);
            }
#pragma GCC unroll 4
            for (int t = 0; t < tokens; t++)
                sums[t][c][i] = sum[t];
        }
}

/* Decodes the columns from `from` to `to` of a tile to pairs of columns. */
INLINE void decode_columns(struct coded_tile *tile, long from, long to, words *pairs)
{
    for (; from < to; from += COLUMNS, pairs += COLUMNS / 2)
        next_run(tile, fewer(COLUMNS, to - from) / 4, pairs);
}

/* The sums of all columns in whole blocks, of each row: even ones and odd ones. */
static APART void turn_back(const floats sums[4][LANES], int all, floats even[LANES], floats odd[LANES])
{
    words from[LANES], to[4][LANES];
    for (int c = 0; c < all; c++) {
        for (int i = 0; i < LANES; i++)
            from[i] = f_bits(sums[c][i]);
        w_transpose(from, to[c]);
    }
    for (int row = 0; row < CODED_ROWS; row++) {
        even[row] = w_bits(to[0][row]);
        odd[row] = w_bits(to[1][row]);
        if (all == 4) {
            even[row] = f_add(even[row], w_bits(to[2][row]));
            odd[row] = f_add(odd[row], w_bits(to[3][row]));
        }
    }
}

/* x [tokens, k], of which `divided` are the whole blocks, times the sixteen rows of a tile, into out [tokens, n]. 0 if
   the tile is damaged. */
INLINE int multiply_columns(const int tokens, const int block, int order, const uint8_t *from, uint64_t bytes,
                            const uint16_t *x, const float *divided, const uint16_t *bias, uint16_t *out, long n,
                            long k)
{
    const long end = k / block * block;
    struct coded_tile tile;
    turned_sums sums;
    words pairs[SPAN / 2];
    uint16_t last[CODED_ROWS][2 * COLUMNS];
    if (!start_tile(&tile, from, bytes, (uint64_t)k / 4))
        return 0;
    memset(sums, 0, (size_t)tokens * sizeof *sums);
    for (long at = 0; at < end; at += SPAN) {
        const long there = fewer(SPAN, end - at);
        decode_columns(&tile, at, at + there, pairs);
        add_turned(tokens, block, pairs, divided + at, k, there, sums);
    }
    decode_columns(&tile, end, k, pairs);
    for (long at = 0; end + at < k; at += COLUMNS) {
        words row[LANES];
        w_transpose(pairs + at / 2, row); /* of columns that are not there: anything */
        store_rows(row, *last + at, 2 * COLUMNS, CODED_ROWS, COLUMNS);
    }
    for (int t = 0; t < tokens; t++) {
        floats even[LANES], odd[LANES];
        turn_back(sums[t], block / LANES, even, odd);
        for (int row = 0; row < CODED_ROWS; row++) {
            const float whole = sum_in_order(order, even[row], odd[row]);
            const float sum = add_last(order, whole, last[row], x + t * k + end, 0, k - end);
            out[t * n + row] = rounded(with_bias(sum, bias, row));
        }
    }
    return finished(&tile);
}

#define CASE(T)                                                                                                        \
    case T:                                                                                                            \
        if (order == BY_PAIRS)                                                                                         \
            return multiply_columns(T, 32, BY_PAIRS, from, bytes, x, divided, bias, out, n, k);                        \
        return multiply_columns(T, 64, order, from, bytes, x, divided, bias, out, n, k);

static APART int columns_of_tile(int tokens, int order, const uint8_t *from, uint64_t bytes, const uint16_t *x,
                                 const float *divided, const uint16_t *bias, uint16_t *out, long n, long k)
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
#undef SPAN
