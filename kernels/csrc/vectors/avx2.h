/* Operations of AVX2 with FMA and F16C, for vectors.h. */

#define part_fma(A, B, C) ((float_part)_mm256_fmadd_ps((__m256)(A), (__m256)(B), (__m256)(C)))
#define part_min(A, B) ((float_part)_mm256_min_ps((__m256)(A), (__m256)(B)))
#define part_max(A, B) ((float_part)_mm256_max_ps((__m256)(A), (__m256)(B)))
#define part_round(A) ((float_part)_mm256_round_ps((__m256)(A), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
#define part_floor(A) ((float_part)_mm256_floor_ps((__m256)(A)))
#define part_ceil(A) ((float_part)_mm256_ceil_ps((__m256)(A)))
#define part_to_words(A) ((word_part)_mm256_cvtps_epi32((__m256)(A)))

/* Sixteen bytes, without a sign. */
INLINE words w_load_bytes(const void *from)
{
    const __m128i bytes = _mm_loadu_si128(from);
    return (words){{(word_part)_mm256_cvtepu8_epi32(bytes), (word_part)_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))}};
}

INLINE words w_load_signed_bytes(const void *from)
{
    const __m128i bytes = _mm_loadu_si128(from);
    return (words){{(word_part)_mm256_cvtepi8_epi32(bytes), (word_part)_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))}};
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
