/* 32 small numbers at a time, a byte each and without a sign, and their products with inputs.

   With pairs of bfloat16 a look-up makes numbers of the bytes, in their order. Without them a byte is converted where it
   lies in its word, with no shuffle: then bytes 1 and 2 of a word are 2^8 and 2^16 too large, and the numbers of eight
   words come by their place in the word. Inputs lie in the same order, and make up for the size. */

#ifndef PENSTOCK_BYTES_H
#define PENSTOCK_BYTES_H

#include "../bfloat16.h"
#include "inputs.h"

#define RUN 32 /* numbers */

#if WIDTH == 64
typedef int32_t byte_words __attribute__((vector_size(32)));
typedef int32_t byte_words_anywhere __attribute__((vector_size(32), aligned(1), may_alias));
#define BYTE_PARTS 1
#define EACH_BYTE_PART(DO, ...) DO(0, ##__VA_ARGS__)
#else
typedef word_part byte_words;
typedef word_part_anywhere byte_words_anywhere;
#define BYTE_PARTS (RUN / WIDTH)
#if WIDTH == 32
#define EACH_BYTE_PART(DO, ...) DO(0, ##__VA_ARGS__)
#else
#define EACH_BYTE_PART(DO, ...) DO(0, ##__VA_ARGS__) DO(1, ##__VA_ARGS__)
#endif
#endif

typedef struct { byte_words p[BYTE_PARTS]; } bytes;

INLINE bytes b_load(const void *from)
{
    bytes made;
#define B_LOAD_PART(I) made.p[I] = ((const byte_words_anywhere *)from)[I];
    EACH_BYTE_PART(B_LOAD_PART)
    return made;
}

INLINE void b_store(void *to, bytes a)
{
#define B_STORE_PART(I) ((byte_words_anywhere *)to)[I] = a.p[I];
    EACH_BYTE_PART(B_STORE_PART)
}

/* The bits of each byte in a mask. */
INLINE bytes b_and(bytes a, uint8_t mask)
{
#define B_AND_PART(I) a.p[I] &= (int32_t)(mask * 0x01010101u);
    EACH_BYTE_PART(B_AND_PART)
    return a;
}

INLINE bytes b_xor(bytes a, uint8_t mask)
{
#define B_XOR_PART(I) a.p[I] ^= (int32_t)(mask * 0x01010101u);
    EACH_BYTE_PART(B_XOR_PART)
    return a;
}

INLINE bytes b_or(bytes a, bytes b)
{
#define B_OR_PART(I) a.p[I] |= b.p[I];
    EACH_BYTE_PART(B_OR_PART)
    return a;
}

/* Moves bits to the right, to the left if `by` is negative, also from one byte to the next. */
INLINE bytes b_shift(bytes a, const int by)
{
#define B_SHIFT_PART(I) a.p[I] = by < 0 ? a.p[I] << -by : a.p[I] >> by;
    EACH_BYTE_PART(B_SHIFT_PART)
    return a;
}

/* The lower halves of sixteen bytes, then the upper ones. */
INLINE bytes b_halves(const void *from)
{
    bytes made;
#if WIDTH >= 32
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(from));
    made.p[0] = (byte_words)_mm256_srlv_epi32(both, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
#else
    made.p[0] = part_load_words(from);
    made.p[1] = made.p[0] >> 4;
#endif
    return b_and(made, 15);
}

/* The halves of each of sixteen bytes, the lower one first. */
INLINE bytes b_halves_in_turn(const void *from)
{
    bytes made;
#if WIDTH >= 32
    const __m256i each = _mm256_cvtepu8_epi16(_mm_loadu_si128(from));
    made.p[0] = (byte_words)_mm256_or_si256(each, _mm256_slli_epi16(each, 4));
#else
    const byte_part both = part_load_bytes(from);
    made.p[0] = (byte_words)part_zip_low(both, both >> 4);
    made.p[1] = (byte_words)part_zip_high(both, both >> 4);
#endif
    return b_and(made, 15);
}

/* table[i] for each byte i below 16. */
INLINE bytes b_lookup(bytes a, const uint8_t table[16])
{
#if WIDTH >= 32
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table));
    a.p[0] = (byte_words)_mm256_shuffle_epi8(both, (__m256i)a.p[0]);
#else
    const byte_part all = part_load_bytes(table);
    a.p[0] = (byte_words)part_lookup_bytes((byte_part)a.p[0], all);
    a.p[1] = (byte_words)part_lookup_bytes((byte_part)a.p[1], all);
#endif
    return a;
}

/* 16 for each of 32 bits that is set. */
INLINE bytes b_sixteens(uint32_t bits)
{
    bytes made;
#if WIDTH == 64
    made.p[0] = (byte_words)_mm256_maskz_set1_epi8(bits, 16);
#elif WIDTH == 32
    const __m256i each = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i place = _mm256_set1_epi64x((long long)0x8040201008040201), all = _mm256_set1_epi32((int)bits);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(all, each), place), place);
    made.p[0] = (byte_words)_mm256_and_si256(set, _mm256_set1_epi8(16));
#else
    typedef uint64_t eights __attribute__((vector_size(WIDTH)));
    const eights place = 0x8040201008040201 - (eights){0};
    for (int i = 0; i < BYTE_PARTS; i++) {
        const eights each = {(bits >> 16 * i & 255) * 0x0101010101010101u,
                             (bits >> (16 * i + 8) & 255) * 0x0101010101010101u};
        made.p[i] = (byte_words)((byte_part)((byte_part)(each & place) != 0) & 16);
    }
#endif
    return made;
}

/* Sixteen of the numbers, from the first on, or from the second half on. */
INLINE words b_to_words(bytes a, const int half)
{
#if WIDTH >= 32
    const __m256i all = (__m256i)a.p[0];
    const __m128i some = half ? _mm256_extracti128_si256(all, 1) : _mm256_castsi256_si128(all);
#if WIDTH == 64
    return (words){{(word_part)_mm512_cvtepu8_epi32(some)}};
#else
    return (words){{(word_part)_mm256_cvtepu8_epi32(some),
                    (word_part)_mm256_cvtepu8_epi32(_mm_srli_si128(some, 8))}};
#endif
#else
    return w_load_bytes(&a.p[half]);
#endif
}

/* ---- products ---- */

/* Sums of a run's products. Those of the second sixteen numbers are in the second half of all lanes. */
typedef struct { float_part p[BYTE_PARTS]; } run_sums;

#define EACH_SUM EACH_BYTE_PART

#ifdef HAS_PAIRS

typedef numbers run_numbers; /* in their order */

/* Numbers of at most `count` bits, five or six. */
INLINE run_numbers b_to_numbers(bytes a, const int count)
{
    uint16_t table[2 * RUN];
    for (int i = 0; i < 2 * RUN; i++)
        table[i] = rounded((float)i);
    const __m512i apart = _mm512_cvtepu8_epi16((__m256i)a.p[0]), low = _mm512_loadu_si512(table);
    if (count <= 5)
        return (numbers)_mm512_permutexvar_epi16(apart, low);
    return (numbers)_mm512_permutex2var_epi16(low, apart, _mm512_loadu_si512(table + RUN));
}

/* The products of a run's numbers and inputs. */
INLINE run_sums run_dot(run_numbers a, const input *x)
{
    return (run_sums){{n_dot((float_part){0}, n_load_inputs(x), a)}};
}

/* Stores 32 inputs as they are multiplied with numbers of bytes. */
INLINE void fit_run(const float x[RUN], input *to)
{
    for (int i = 0; i < RUN; i++)
        to[i] = rounded(x[i]); /* they were bfloat16 */
}

#else

typedef struct { float_part p[4 * BYTE_PARTS]; } run_numbers;

INLINE run_numbers b_to_numbers(bytes a, const int count)
{
    run_numbers made;
    (void)count;
#define B_NUMBERS_PART(I)                                                                                              \
    made.p[I] = __builtin_convertvector(a.p[I] & 255, float_part);                                                     \
    made.p[I + BYTE_PARTS] = __builtin_convertvector(a.p[I] & 255 << 8, float_part);                                   \
    made.p[I + 2 * BYTE_PARTS] = __builtin_convertvector(a.p[I] & 255 << 16, float_part);                              \
    made.p[I + 3 * BYTE_PARTS] = __builtin_convertvector((word_part)((unsigned_part)a.p[I] >> 24), float_part);
    EACH_BYTE_PART(B_NUMBERS_PART)
    return made;
}

INLINE run_sums run_dot(run_numbers a, const input *x)
{
    run_sums sum;
#define RUN_DOT_PART(I)                                                                                                \
    sum.p[I] = a.p[I] * part_load(x + I * WITHIN_PART);                                                                \
    sum.p[I] = part_fma(a.p[I + BYTE_PARTS], part_load(x + (I + BYTE_PARTS) * WITHIN_PART), sum.p[I]);                 \
    sum.p[I] = part_fma(a.p[I + 2 * BYTE_PARTS], part_load(x + (I + 2 * BYTE_PARTS) * WITHIN_PART), sum.p[I]);         \
    sum.p[I] = part_fma(a.p[I + 3 * BYTE_PARTS], part_load(x + (I + 3 * BYTE_PARTS) * WITHIN_PART), sum.p[I]);
    EACH_SUM(RUN_DOT_PART)
    return sum;
}

INLINE void fit_run(const float x[RUN], input *to)
{
    static const float by[4] = {1, 1.0f / 256, 1.0f / 65536, 1};
    for (int i = 0; i < RUN; i++)
        to[i % 4 * (RUN / 4) + i / 4] = x[i] * by[i % 4];
}

#endif

/* The products of 32 float32 numbers with as many inputs. */
INLINE run_sums floats_dot(floats first, floats second, const float *x)
{
    const floats all = f_fma(second, f_load(x + LANES), f_mul(first, f_load(x)));
    run_sums sum;
#if PARTS == BYTE_PARTS
#define FOLD_PART(I) sum.p[I] = all.p[I];
#else
#define FOLD_PART(I) sum.p[I] = all.p[I] + all.p[I + BYTE_PARTS];
#endif
    EACH_SUM(FOLD_PART)
    return sum;
}

/* Adds sums, times the scale of all of them, or of those of each sixteen numbers. */
INLINE run_sums add_run(run_sums to, run_sums sum, run_sums scale)
{
#define ADD_RUN_PART(I) to.p[I] = part_fma(sum.p[I], scale.p[I], to.p[I]);
    EACH_SUM(ADD_RUN_PART)
    return to;
}

INLINE run_sums scale_of(float scale)
{
    run_sums made;
#define SCALE_PART(I) made.p[I] = part_all(scale);
    EACH_SUM(SCALE_PART)
    return made;
}

INLINE run_sums scales_of(float first, float second)
{
    run_sums made;
#if BYTE_PARTS == 1
    float each[WITHIN_PART];
    for (int i = 0; i < WITHIN_PART; i++)
        each[i] = i < WITHIN_PART / 2 ? first : second;
    made.p[0] = part_load(each);
#else
    made.p[0] = part_all(first);
    made.p[1] = part_all(second);
#endif
    return made;
}

INLINE float sum_of(run_sums a)
{
#if BYTE_PARTS == 1
    return part_sum(a.p[0]);
#else
    return part_sum(a.p[0] + a.p[1]);
#endif
}

#endif
