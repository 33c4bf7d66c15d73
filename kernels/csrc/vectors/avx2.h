/* Operations of AVX2 with FMA and F16C, for vectors.h. */

#define part_fma(A, B, C) ((float_part)_mm256_fmadd_ps((__m256)(A), (__m256)(B), (__m256)(C)))
#define part_fma_once part_fma
#define part_min(A, B) ((float_part)_mm256_min_ps((__m256)(A), (__m256)(B)))
#define part_max(A, B) ((float_part)_mm256_max_ps((__m256)(A), (__m256)(B)))
#define part_round(A) ((float_part)_mm256_round_ps((__m256)(A), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
#define part_floor(A) ((float_part)_mm256_floor_ps((__m256)(A)))
#define part_ceil(A) ((float_part)_mm256_ceil_ps((__m256)(A)))
#define part_to_words(A) ((word_part)_mm256_cvtps_epi32((__m256)(A)))

/* Bits of a where the mask is set, else of b. Two that exchange bits of a and b share two of the three steps. */
#define part_choose(MASK, A, B) ((((A) ^ (B)) & (MASK)) ^ (B))

#define part_dot_halves(A, B) ((word_part)_mm256_madd_epi16((__m256i)(A), (__m256i)(B)))

INLINE float part_most(float_part a)
{
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

INLINE int part_any(word_part a) { return !_mm256_testz_si256((__m256i)a, (__m256i)a); }

#define HAS_MASKS

INLINE __m256i part_mask(long count)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE words w_load_some(const void *from, long count)
{
    return (words){{(word_part)_mm256_maskload_epi32(from, part_mask(count)),
                    (word_part)_mm256_maskload_epi32((const int *)from + 8, part_mask(count - 8))}};
}

INLINE void w_store_some(void *to, words a, long count)
{
    _mm256_maskstore_epi32(to, part_mask(count), (__m256i)a.p[0]);
    _mm256_maskstore_epi32((int *)to + 8, part_mask(count - 8), (__m256i)a.p[1]);
}

/* Sixteen bytes, without a sign. */
INLINE words w_load_bytes(const void *from)
{
    const __m128i *first = from, *second = (const void *)((const char *)from + 8);
    return (words){{(word_part)_mm256_cvtepu8_epi32(_mm_loadl_epi64(first)),
                    (word_part)_mm256_cvtepu8_epi32(_mm_loadl_epi64(second))}};
}

INLINE words w_load_signed_bytes(const void *from)
{
    const __m128i *first = from, *second = (const void *)((const char *)from + 8);
    return (words){{(word_part)_mm256_cvtepi8_epi32(_mm_loadl_epi64(first)),
                    (word_part)_mm256_cvtepi8_epi32(_mm_loadl_epi64(second))}};
}

INLINE words w_load_halves(const void *from)
{
    const __m128i *two = from;
    return (words){{(word_part)_mm256_cvtepu16_epi32(_mm_loadu_si128(two)),
                    (word_part)_mm256_cvtepu16_epi32(_mm_loadu_si128(two + 1))}};
}

/* The lower halves, which must be all. */
INLINE void w_store_halves(void *to, words a)
{
    const __m256i packed = _mm256_packus_epi32((__m256i)a.p[0], (__m256i)a.p[1]);
    _mm256_storeu_si256(to, _mm256_permute4x64_epi64(packed, 0xd8));
}

INLINE floats f_load_half(const void *from)
{
    const __m128i *two = from;
    return (floats){{(float_part)_mm256_cvtph_ps(_mm_loadu_si128(two)),
                     (float_part)_mm256_cvtph_ps(_mm_loadu_si128(two + 1))}};
}

INLINE void f_store_half(void *to, floats a)
{
    __m128i *two = to;
    _mm_storeu_si128(two, _mm256_cvtps_ph((__m256)a.p[0], _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(two + 1, _mm256_cvtps_ph((__m256)a.p[1], _MM_FROUND_TO_NEAREST_INT));
}

INLINE float half_to_float(uint16_t bits) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))); }

INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

INLINE float part_sum(float_part a)
{
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* table[i] for the lowest four bits i of each lane. Other bits have no meaning. */
INLINE floats f_lookup(words a, floats table)
{
    floats made;
#define LOOKUP_PART(I)                                                                                                 \
    made.p[I] = (float_part)_mm256_blendv_ps(_mm256_permutevar8x32_ps((__m256)table.p[0], (__m256i)a.p[I]),            \
                                             _mm256_permutevar8x32_ps((__m256)table.p[1], (__m256i)a.p[I]),            \
                                             _mm256_castsi256_ps(_mm256_slli_epi32((__m256i)a.p[I], 28)));
    EACH_PART(LOOKUP_PART)
    return made;
}

/* Sixteen halves of eight bytes, the lower half of each first. Bits above the lowest four have no meaning. */
INLINE words w_load_byte_halves(const void *from)
{
    int32_t eight[2];
    memcpy(eight, from, sizeof eight);
    const __m256i first = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(eight[0]));
    const __m256i second = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(eight[1]));
    return (words){{(word_part)_mm256_or_si256(first, _mm256_slli_epi64(first, 28)),
                    (word_part)_mm256_or_si256(second, _mm256_slli_epi64(second, 28))}};
}

/* Sixteen numbers of float8_e4m3fn, divided by 256: with the bits of float16, which has an exponent bit more. */
INLINE floats f_load_float8(const void *from)
{
    const __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(from));
    const __m256i size = _mm256_and_si256(bytes, _mm256_set1_epi16(0x7f));
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(bytes, _mm256_set1_epi16(0x80)), 8);
    const __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi16(size, _mm256_set1_epi16(0x7f)), _mm256_set1_epi16(0x7c00));
    const __m256i half = _mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16(size, 7), sign), nan);
    return (floats){{(float_part)_mm256_cvtph_ps(_mm256_castsi256_si128(half)),
                     (float_part)_mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))}};
}

/* Of each half of a lane: the product of a, not negative, and b, in units of 1 << 15, to the nearest, ties up. */
INLINE words w_scale_halves(words a, words b)
{
#define SCALE_HALVES_PART(I) a.p[I] = (word_part)_mm256_mulhrs_epi16((__m256i)a.p[I], (__m256i)b.p[I]);
    EACH_PART(SCALE_HALVES_PART)
    return a;
}

/* made[b] gets words b, b + 4, b + 8, ... of four registers. */
INLINE void part_load_4(const void *from, word_part made[4])
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i row[4], pair[4];
    for (int i = 0; i < 4; i++)
        row[i] = _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i *)from + i), order);
    for (int i = 0; i < 2; i++) {
        pair[2 * i] = _mm256_unpacklo_epi64(row[2 * i], row[2 * i + 1]);
        pair[2 * i + 1] = _mm256_unpackhi_epi64(row[2 * i], row[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        made[i] = (word_part)_mm256_permute2x128_si256(pair[i], pair[i + 2], 0x20);
        made[i + 2] = (word_part)_mm256_permute2x128_si256(pair[i], pair[i + 2], 0x31);
    }
}

INLINE void transpose_eight(const __m256i row[8], __m256i column[8])
{
    __m256i a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(row[i], row[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        column[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        column[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

/* column[j] gets word j of each of the sixteen rows. */
INLINE void w_transpose(const words row[LANES], words column[LANES])
{
    for (int high = 0; high < 2; high++)
        for (int part = 0; part < 2; part++) {
            __m256i from[8], to[8];
            for (int i = 0; i < 8; i++)
                from[i] = (__m256i)row[8 * high + i].p[part];
            transpose_eight(from, to);
            for (int i = 0; i < 8; i++)
                column[8 * part + i].p[high] = (word_part)to[i];
        }
}

/* Bytes of a and b in turn, of the first and of the second half of each sixteen. */
INLINE byte_part part_zip_low(byte_part a, byte_part b)
{
    return (byte_part)_mm256_unpacklo_epi8((__m256i)a, (__m256i)b);
}

INLINE byte_part part_zip_high(byte_part a, byte_part b)
{
    return (byte_part)_mm256_unpackhi_epi8((__m256i)a, (__m256i)b);
}

/* ---- 64 codes of two bits, a byte each ---- */

/* In sixteen bytes: those in the lowest bits of each, then those in the next. */
INLINE void codes_in_stripes(const void *from, byte_part codes[PARTS])
{
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(from)), three = _mm256_set1_epi8(3);
    codes[0] = (byte_part)_mm256_and_si256(_mm256_srlv_epi64(both, _mm256_setr_epi64x(0, 0, 2, 2)), three);
    codes[1] = (byte_part)_mm256_and_si256(_mm256_srlv_epi64(both, _mm256_setr_epi64x(4, 4, 6, 6)), three);
}

/* In sixteen bytes: four of each byte, then four of the next. */
INLINE void codes_in_turn(const void *from, byte_part codes[PARTS])
{
    byte_part stripes[PARTS];
    codes_in_stripes(from, stripes);
    /* Stripes 0 and 2, and 1 and 3, then bytes of all four in turn: in eights, of bytes 0 to 7 and of 8 to 15. */
    const __m256i even = _mm256_permute2x128_si256((__m256i)stripes[0], (__m256i)stripes[1], 0x20);
    const __m256i odd = _mm256_permute2x128_si256((__m256i)stripes[0], (__m256i)stripes[1], 0x31);
    const __m256i low = _mm256_permute4x64_epi64(_mm256_unpacklo_epi8(even, odd), 0xd8);
    const __m256i high = _mm256_permute4x64_epi64(_mm256_unpackhi_epi8(even, odd), 0xd8);
    const __m256i first = _mm256_shuffle_epi32(low, 0xd8), second = _mm256_shuffle_epi32(high, 0xd8);
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5, 2, 3, 6, 7,
                                           8, 9, 12, 13, 10, 11, 14, 15);
    codes[0] = (byte_part)_mm256_shuffle_epi8(first, order);
    codes[1] = (byte_part)_mm256_shuffle_epi8(second, order);
}

#define SPREADS_PARTS

/* to[i] = table[codes[i]], or if that code is 0, for which the table has 0, the next one of `from`. Returns the number of
   those. May read as many bytes as a part has. */
INLINE uint64_t part_spread(byte_part codes, const uint8_t table[16], const uint8_t *from, byte_part *to)
{
    const __m256i code = (__m256i)codes, exponents = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table));
    const __m256i none = _mm256_cmpeq_epi8(code, _mm256_setzero_si256());
    /* The number of codes 0 up to each, in each four, then in each eight and sixteen: with the last of fours before. */
    const int first_four = 0x03030303, second_four = 0x07070707, third_four = 0x0b0b0b0b;
    const __m256i eights =
        _mm256_setr_epi32(-1, first_four, second_four, third_four, -1, first_four, second_four, third_four);
    const __m256i all = _mm256_setr_epi32(-1, -1, first_four, second_four, -1, -1, first_four, second_four);
    __m256i ones = _mm256_set1_epi32(0x01010101);
    __asm__("" : "+x"(ones)); /* else compilers make shifts and sums of the product */
    __m256i count = _mm256_mullo_epi32(_mm256_abs_epi8(none), ones);
    count = _mm256_add_epi8(count, _mm256_shuffle_epi8(count, eights));
    count = _mm256_add_epi8(count, _mm256_shuffle_epi8(count, all));
    const __m256i place = _mm256_add_epi8(none, count); /* of each code 0 among them */
    const uint32_t mask = (uint32_t)_mm256_movemask_epi8(none);
    const uint64_t first = (uint64_t)_mm_popcnt_u64(mask & 0xffff);
    const __m256i next = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const void *)from)),
                                                 _mm_loadu_si128((const void *)(from + first)), 1);
    const __m256i others = _mm256_and_si256(_mm256_shuffle_epi8(next, place), none);
    *to = (byte_part)_mm256_or_si256(_mm256_shuffle_epi8(exponents, code), others);
    return (uint64_t)_mm_popcnt_u64(mask);
}
