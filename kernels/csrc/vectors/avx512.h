/* Operations of AVX-512, for vectors.h. */

#define part_fma(A, B, C) ((float_part)_mm512_fmadd_ps((__m512)(A), (__m512)(B), (__m512)(C)))
#define part_min(A, B) ((float_part)_mm512_min_ps((__m512)(A), (__m512)(B)))
#define part_max(A, B) ((float_part)_mm512_max_ps((__m512)(A), (__m512)(B)))
#define part_round(A) ((float_part)_mm512_roundscale_ps((__m512)(A), _MM_FROUND_TO_NEAREST_INT))
#define part_floor(A) ((float_part)_mm512_roundscale_ps((__m512)(A), _MM_FROUND_TO_NEG_INF))
#define part_ceil(A) ((float_part)_mm512_roundscale_ps((__m512)(A), _MM_FROUND_TO_POS_INF))
#define part_to_words(A) ((word_part)_mm512_cvtps_epi32((__m512)(A)))

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
