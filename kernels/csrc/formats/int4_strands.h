/* Sums of a block's rows over the columns of a group, for int4.h: by look-ups of bfloat16 pairs, or of float32 numbers
   without any look-up. */

#ifdef HAS_PAIRS

/* Strand 2 * h + b has sixteen rows, from 16 * h + 32 * b on. */
#define INT4_STRANDS 4
#define INT4_COUNT(T) (T <= 4 ? 4 : 2) /* strands in one pass over a group */

/* Bytes of two columns that make up pairs: 16-bit lane i receives the byte of row i / 2 of column i % 2. `half` says
   which rows in a byte column, 0 to 15 or 16 to 31. */
INLINE __m512i int4_picked(int half)
{
    uint8_t from[64];
    for (int i = 0; i < 64; i++)
        from[i] = (uint8_t)(i / 2 % 2 * INT4_COLUMN + half * LANES + i / 4);
    return _mm512_loadu_si512(from);
}

/* The bfloat16 number for each value of the lowest five bits, of which the fifth has no meaning. */
INLINE word_part int4_numbers(void)
{
    uint16_t table[32];
    for (int i = 0; i < 32; i++)
        table[i] = rounded((float)(i % 16 - 8));
    return part_load_words(table);
}

/* sum[t][s]: products of row t of x [tokens, wide] and strand first + s, for s < count, of `group` columns. */
INLINE void int4_sums(const int tokens, const int count, const int first, const uint8_t *bytes, long group,
                      const input *x, long wide, float_part sum[MOST_TOKENS][INT4_STRANDS])
{
    const __m512i pick[2] = {int4_picked(0), int4_picked(1)};
    const word_part table = int4_numbers();
    for (int t = 0; t < tokens; t++)
        for (int s = 0; s < count; s++)
            sum[t][s] = (float_part){0};
#pragma GCC unroll 4
    for (long j = 0; j < group; j += 2) {
        const __m512i two = _mm512_loadu_si512(bytes + j * INT4_COLUMN);
        word_part pairs[INT4_STRANDS];
        for (int s = 0; s < count; s += 2) {
            const __m512i mine = _mm512_permutexvar_epi8(pick[(first + s) / 2], two);
            pairs[s] = part_lookup_halves((word_part)mine, table);
            pairs[s + 1] = part_lookup_halves((word_part)_mm512_srli_epi16(mine, 4), table);
        }
        for (int t = 0; t < tokens; t++) {
            int32_t both;
            memcpy(&both, x + t * wide + j, sizeof both);
            const word_part inputs = both - (word_part){0};
            for (int s = 0; s < count; s++)
                sum[t][s] = part_dot_pairs(sum[t][s], inputs, pairs[s]);
        }
    }
}

/* Of one group: scales and zeros of all strands. */
INLINE void int4_scales(const uint16_t *from, float_part scale[INT4_STRANDS], float_part zero[INT4_STRANDS])
{
    for (int s = 0; s < INT4_STRANDS; s++) {
        const words both = w_load(from + 2 * LANES * (s / 2 + 2 * (s % 2)));
        scale[s] = (float_part)w_shl(both, 16).p[0];
        zero[s] = (float_part)w_and(both, w_all((int32_t)0xffff0000)).p[0];
    }
}

/* The strands' numbers in the order of rows. */
INLINE void int4_rows(const float_part strands[INT4_STRANDS], float rows[INT4_BLOCK])
{
    for (int s = 0; s < INT4_STRANDS; s++)
        memcpy(rows + LANES * (s / 2 + 2 * (s % 2)), &strands[s], sizeof *strands);
}

#else

/* A column's bytes are words of eight halves of bytes each. Half i of a word, converted where it is, is 16^i times a
   number from 0 to 15: a mask and a conversion, no shift. Scales make up for it. Half 2 * b + h of word w has row
   4 * w + b + 32 * h. Strand (4 * h + b) * INT4_EACH + e has those of the words in register e of a column. */
#define INT4_EACH (INT4_COLUMN / WIDTH)
#define INT4_STRANDS (8 * INT4_EACH)
#define INT4_COUNT(T)                                                                                                  \
    (8 * INT4_EACH * T <= AT_ONCE   ? 8 * INT4_EACH                                                                    \
     : 4 * INT4_EACH * T <= AT_ONCE ? 4 * INT4_EACH                                                                    \
     : 2 * INT4_EACH * T <= AT_ONCE ? 2 * INT4_EACH                                                                    \
                                    : INT4_EACH)

/* The place of a strand's bits in a word. */
#define INT4_PLACE(S) (4 * (2 * ((S) / INT4_EACH % 4) + (S) / INT4_EACH / 4))

/* sum[t][s]: products of row t of x [tokens, wide] and strand first + s, for s < count, of `group` columns. */
INLINE void int4_sums(const int tokens, const int count, const int first, const uint8_t *bytes, long group,
                      const input *x, long wide, float_part sum[MOST_TOKENS][INT4_STRANDS])
{
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 16
        for (int s = 0; s < count; s++)
            sum[t][s] = (float_part){0};
#pragma GCC unroll 2
    for (long j = 0; j < group; j++) {
        word_part from[INT4_EACH];
#pragma GCC unroll 2
        for (int e = 0; e < INT4_EACH; e++)
            from[e] = part_load_words(bytes + j * INT4_COLUMN + e * WIDTH);
#pragma GCC unroll 16
        for (int s = 0; s < count; s++) {
            const int place = INT4_PLACE(first + s);
            const word_part word = from[(first + s) % INT4_EACH];
            const word_part half = place == 28 ? (word_part)((unsigned_part)word >> 28) : word & 15 << place;
            const float_part number = __builtin_convertvector(half, float_part);
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++)
                sum[t][s] = part_fma(number, part_all(x[t * wide + j]), sum[t][s]);
        }
    }
}

/* Of one group: scales and zeros of all strands, for numbers that are 8 too large. */
INLINE void int4_scales(const uint16_t *from, float_part scale[INT4_STRANDS], float_part zero[INT4_STRANDS])
{
#pragma GCC unroll 4
    for (int part = 0; part < 2 * INT4_EACH; part++) {
        word_part both[4];
        part_load_4(from + 8 * WITHIN_PART * part, both);
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) {
            const int s = (part / INT4_EACH * 4 + b) * INT4_EACH + part % INT4_EACH, place = INT4_PLACE(s);
            const float_part step = (float_part)(both[b] << 16);
            scale[s] = step * (1.0f / (place == 28 ? 1 : 1 << place));
            zero[s] = (float_part)(both[b] & (int32_t)0xffff0000) - 8 * step;
        }
    }
}

/* The strands' numbers in the order of rows. */
INLINE void int4_rows(const float_part strands[INT4_STRANDS], float rows[INT4_BLOCK])
{
    for (int s = 0; s < INT4_STRANDS; s++)
        for (int i = 0; i < WITHIN_PART; i++)
            rows[4 * (i + s % INT4_EACH * WITHIN_PART) + s / INT4_EACH % 4 + s / INT4_EACH / 4 * 32] = strands[s][i];
}

#endif
