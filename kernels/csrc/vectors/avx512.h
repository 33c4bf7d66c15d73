/* Operations of AVX-512, for vectors.h. */

#define part_fma(A, B, C) ((float_part)_mm512_fmadd_ps((__m512)(A), (__m512)(B), (__m512)(C)))
#define part_fma_once part_fma
#define part_min(A, B) ((float_part)_mm512_min_ps((__m512)(A), (__m512)(B)))
#define part_max(A, B) ((float_part)_mm512_max_ps((__m512)(A), (__m512)(B)))
#define part_round(A) ((float_part)_mm512_roundscale_ps((__m512)(A), _MM_FROUND_TO_NEAREST_INT))
#define part_floor(A) ((float_part)_mm512_roundscale_ps((__m512)(A), _MM_FROUND_TO_NEG_INF))
#define part_ceil(A) ((float_part)_mm512_roundscale_ps((__m512)(A), _MM_FROUND_TO_POS_INF))
#define part_to_words(A) ((word_part)_mm512_cvtps_epi32((__m512)(A)))

/* Bits of a where the mask is set, else of b. */
#define part_choose(MASK, A, B)                                                                                        \
    ((word_part)_mm512_ternarylogic_epi32((__m512i)(MASK), (__m512i)(A), (__m512i)(B), 0xca))

#define HAS_MASKS
#define HAS_MASKS_OF_HALVES

INLINE words w_load_some(const void *from, long count)
{
    return (words){{(word_part)_mm512_maskz_loadu_epi32(_bzhi_u32(0xffff, (unsigned)count), from)}};
}

INLINE void w_store_some(void *to, words a, long count)
{
    _mm512_mask_storeu_epi32(to, _bzhi_u32(0xffff, (unsigned)count), (__m512i)a.p[0]);
}

INLINE float part_most(float_part a) { return _mm512_reduce_max_ps((__m512)a); }
INLINE int part_any(word_part a) { return _mm512_test_epi32_mask((__m512i)a, (__m512i)a) != 0; }

#define HAS_POWERS

/* a * 2^b for whole b, 0 where that is too small. */
INLINE floats f_times_power(floats a, floats b) { return (floats){{(float_part)_mm512_scalef_ps((__m512)a.p[0], (__m512)b.p[0])}}; }

#define HAS_BYTE_PRODUCTS

/* Adds the products of four bytes of a, without a sign, with four of b, with one. */
INLINE words w_dot_bytes(words sum, words a, words b)
{
    return (words){{(word_part)_mm512_dpbusd_epi32((__m512i)sum.p[0], (__m512i)a.p[0], (__m512i)b.p[0])}};
}

/* The first `count` of 32 halves; the others are zero and not touched. */
INLINE words w_load_some_pairs(const void *from, long count)
{
    return (words){{(word_part)_mm512_maskz_loadu_epi16(_bzhi_u32(~0u, (unsigned)count), from)}};
}

/* Pairs of halves 0 to 3 of each eight, and of halves 4 to 7. */
INLINE word_part part_low_halves(word_part low, word_part high)
{
    return (word_part)_mm512_unpacklo_epi16((__m512i)low, (__m512i)high);
}

INLINE word_part part_high_halves(word_part low, word_part high)
{
    return (word_part)_mm512_unpackhi_epi16((__m512i)low, (__m512i)high);
}

/* Lane order[i] of the 32 lanes of two registers. */
INLINE float_part part_two_lookup(float_part low, float_part high, word_part order)
{
    return (float_part)_mm512_permutex2var_ps((__m512)low, (__m512i)order, (__m512)high);
}

/* As w_load_halves, of the first `count`; the others are zero and not touched. */
INLINE words w_load_some_halves(const void *from, long count)
{
    return (words){{(word_part)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(_bzhi_u32(0xffff, (unsigned)count), from))}};
}

INLINE words w_load_bytes(const void *from) { return (words){{(word_part)_mm512_cvtepu8_epi32(_mm_loadu_si128(from))}}; }

INLINE words w_load_signed_bytes(const void *from)
{
    return (words){{(word_part)_mm512_cvtepi8_epi32(_mm_loadu_si128(from))}};
}

INLINE words w_load_halves(const void *from)
{
    return (words){{(word_part)_mm512_cvtepu16_epi32(_mm256_loadu_si256(from))}};
}

INLINE void w_store_halves(void *to, words a) { _mm256_storeu_si256(to, _mm512_cvtepi32_epi16((__m512i)a.p[0])); }

INLINE floats f_load_half(const void *from) { return (floats){{(float_part)_mm512_cvtph_ps(_mm256_loadu_si256(from))}}; }

INLINE void f_store_half(void *to, floats a)
{
    _mm256_storeu_si256(to, _mm512_cvtps_ph((__m512)a.p[0], _MM_FROUND_TO_NEAREST_INT));
}

INLINE float half_to_float(uint16_t bits) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))); }

INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

INLINE float part_sum(float_part a)
{
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)a), _mm512_extractf32x8_ps((__m512)a, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* table[i] for the lowest four bits i of each lane. Other bits have no meaning. */
INLINE floats f_lookup(words a, floats table)
{
    return (floats){{(float_part)_mm512_permutexvar_ps((__m512i)a.p[0], (__m512)table.p[0])}};
}

/* Of each half of a lane: the product of a, not negative, and b, in units of 1 << 15, to the nearest, ties up. */
INLINE words w_scale_halves(words a, words b)
{
    return (words){{(word_part)_mm512_mulhrs_epi16((__m512i)a.p[0], (__m512i)b.p[0])}};
}

/* column[j] gets word j of each of the sixteen rows. */
INLINE void w_transpose(const words row[LANES], words column[LANES])
{
    __m512i a[LANES], b[LANES];
    for (int i = 0; i < LANES; i += 2) {
        a[i] = _mm512_unpacklo_epi32((__m512i)row[i].p[0], (__m512i)row[i + 1].p[0]);
        a[i + 1] = _mm512_unpackhi_epi32((__m512i)row[i].p[0], (__m512i)row[i + 1].p[0]);
    }
    for (int i = 0; i < LANES; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88);
        a[i + 4] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
        a[i + 8] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        column[i].p[0] = (word_part)_mm512_shuffle_i32x4(a[i], a[i + 8], 0x88);
        column[i + 4].p[0] = (word_part)_mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0x88);
        column[i + 8].p[0] = (word_part)_mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd);
        column[i + 12].p[0] = (word_part)_mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0xdd);
    }
}

/* Sixteen halves of eight bytes, the lower half of each first. Bits above the lowest four have no meaning. */
INLINE words w_load_byte_halves(const void *from)
{
    const __m512i apart = _mm512_cvtepu8_epi64(_mm_loadl_epi64(from));
    return (words){{(word_part)_mm512_or_si512(apart, _mm512_slli_epi64(apart, 28))}};
}

/* Sixteen numbers of float8_e4m3fn, divided by 256: with the bits of float16, which has an exponent bit more. */
INLINE floats f_load_float8(const void *from)
{
    const __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(from));
    const __m256i size = _mm256_and_si256(bytes, _mm256_set1_epi16(0x7f));
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(bytes, _mm256_set1_epi16(0x80)), 8);
    const __mmask16 nan = _mm256_cmpeq_epi16_mask(size, _mm256_set1_epi16(0x7f));
    const __m512 numbers = _mm512_cvtph_ps(_mm256_or_si256(_mm256_slli_epi16(size, 7), sign));
    return (floats){{(float_part)_mm512_mask_mov_ps(numbers, nan, _mm512_set1_ps(__builtin_nanf("")))}};
}

/* Bytes of a and b in turn, of the first and of the second half of each sixteen. */
INLINE byte_part part_zip_low(byte_part a, byte_part b)
{
    return (byte_part)_mm512_unpacklo_epi8((__m512i)a, (__m512i)b);
}

INLINE byte_part part_zip_high(byte_part a, byte_part b)
{
    return (byte_part)_mm512_unpackhi_epi8((__m512i)a, (__m512i)b);
}

#define HAS_EXPAND /* VPEXPANDB */

#define LOOKS_UP_FASTEST /* f_lookup is one instruction */

/* ---- pairs of bfloat16 numbers ---- */

#define HAS_PAIRS

/* Adds the products of 32 bfloat16 numbers, two in each lane. */
INLINE float_part part_dot_pairs(float_part sum, word_part a, word_part b)
{
    return (float_part)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

INLINE word_part part_pairs_of(float_part low, float_part high)
{
    return (word_part)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

/* table[i] for the lowest five bits i of each half of a lane. */
INLINE word_part part_lookup_halves(word_part a, word_part table)
{
    return (word_part)_mm512_permutexvar_epi16((__m512i)a, (__m512i)table);
}
