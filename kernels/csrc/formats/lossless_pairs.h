/* Products of a few rows with a tile of the lossless format, in an order of oneDNN's: ../products/pairs.h. A part of
   lossless.h. */

/* x [tokens, k] times the sixteen rows of a tile, into out [tokens, n]. */
INLINE int multiply_pairs_of_tile(const int tokens, const uint8_t *from, uint64_t bytes, const uint16_t *x,
                                  const uint16_t *bias, uint16_t *out, long n, long k, long chunk)
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
            uint8_t exponents[CODED_GROUP];
            words pairs[2];
            next_exponents(&tile, exponents);
            next_group(&tile, exponents, pairs);
            for (int i = 0; i < 2; i++)
                for (int t = 0; t < tokens; t++) {
                    int32_t both;
                    memcpy(&both, x + t * k + at + 2 * i, sizeof both);
                    sum[t] = part_dot_pairs(sum[t], both - (word_part){0}, pairs[i].p[0]);
                }
        }
    }
    for (int t = 0; t < tokens; t++)
        store_with_bias(out + t * n, (floats){{chunk < k ? total[t] + sum[t] : sum[t]}}, bias, 0, LANES);
    return finished(&tile);
}

#define CASE(T)                                                                                                        \
    case T:                                                                                                            \
        return multiply_pairs_of_tile(T, from, bytes, x, bias, out, n, k, chunk);

static APART int pairs_of_tile(int tokens, const uint8_t *from, uint64_t bytes, const uint16_t *x,
                               const uint16_t *bias, uint16_t *out, long n, long k, long chunk)
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
