/* Products of a few rows with a bfloat16 matrix, in the order of summation of oneDNN's kernels.

   One output is a sum over k, ascending, of products of bfloat16 pairs, in a float32 accumulator that VDPBF16PS
   updates. After every `chunk` elements a new accumulator begins, and the accumulators are added in turn. oneDNN
   does the same, but first copies the matrix into blocks. Here sixteen rows of the matrix are transposed in
   registers, so that memory is read once, at its own speed. */

#define STEP 32 /* bfloat16 numbers that one register holds */

/* Adds the products of `pairs` pairs, those of sixteen rows in columns, to sum [tokens]. `left` inputs are there. */
INLINE void add_pairs(const int tokens, const words column[LANES], const uint16_t *x, long k, long left,
                      float_part *sum, long stride)
{
    /* Nothing is added for pairs past the last: it would turn -0 into 0. */
    for (int j = 0; j < LANES && 2 * j < left; j++)
        for (int t = 0; t < tokens; t++) {
            const uint16_t *pair = x + t * k + 2 * j;
            int32_t both = *pair;
            if (2 * j + 1 < left)
                memcpy(&both, pair, sizeof both);
            sum[t * stride] = part_dot_pairs(sum[t * stride], both - (word_part){0}, column[j].p[0]);
        }
}

/* x [tokens, k] times `there` rows, at most `blocks` times sixteen, of w [.., k], into out [tokens, n]. */
INLINE void pairs_multiply(const int tokens, const int blocks, const uint16_t *w, const uint16_t *x,
                           const uint16_t *bias, uint16_t *out, long n, long k, long chunk, long there)
{
    float_part sum[BRIEF_MOST][2], total[BRIEF_MOST][2];
    for (int t = 0; t < tokens; t++)
        for (int b = 0; b < blocks; b++) {
            sum[t][b] = (float_part){0};
            total[t][b] = part_all(-0.0f); /* neutral in a sum, also for -0 */
        }
    for (long at = 0; at < k; at += STEP) {
        const long left = k - at;
        if (at && at % chunk == 0)
            for (int t = 0; t < tokens; t++)
                for (int b = 0; b < blocks; b++) {
                    total[t][b] += sum[t][b];
                    sum[t][b] = (float_part){0};
                }
        const __mmask32 mask = left >= STEP ? ~(__mmask32)0 : ((__mmask32)1 << left) - 1;
        for (int b = 0; b < blocks; b++) {
            words row[LANES], column[LANES];
            for (int i = 0; i < LANES; i++) {
                const long number = b * LANES + i < there ? b * LANES + i : there - 1;
                const uint16_t *from = w + number * k + at;
                row[i].p[0] = (word_part)_mm512_maskz_loadu_epi16(mask, from);
                __builtin_prefetch(from + blocks * LANES * k, 0, 2);
            }
            w_transpose(row, column);
            add_pairs(tokens, column, x + at, k, left, &sum[0][b], 2);
        }
    }
    for (int t = 0; t < tokens; t++)
        for (int b = 0; b < blocks; b++) {
            const floats whole = {{chunk < k ? total[t][b] + sum[t][b] : sum[t][b]}};
            store_with_bias(out + t * n, whole, bias, b * LANES, there);
        }
}

#define CASE(T)                                                                                                        \
    case T:                                                                                                            \
        if (there > LANES)                                                                                             \
            pairs_multiply(T, 2, w, x, bias, out, n, k, chunk, there);                                                 \
        else                                                                                                           \
            pairs_multiply(T, 1, w, x, bias, out, n, k, chunk, there);                                                 \
        break;

/* x [tokens, k] times `there` rows, at most 2 * LANES, of w [.., k], into out [tokens, n]. */
static APART void pairs_piece(int tokens, const uint16_t *w, const uint16_t *x, const uint16_t *bias, uint16_t *out,
                              long n, long k, long chunk, long there)
{
    switch (tokens) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
    }
}
#undef CASE
#undef STEP
