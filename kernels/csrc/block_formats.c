/* Matrices with rows quantised in blocks, from checkpoints and GGUF files: decoding, and products with them as
   stored.

   Numbers are decoded to float32. It holds each product of a number and its scale exactly, or rounded once as the
   format defines. Products with bfloat16 inputs are summed in float32. */

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,f16c,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define LANES 16
#define MOST 4    /* rows that are multiplied in one pass over the matrix */
#define PIECE 16  /* rows of the matrix that a thread takes at a time */

/* `format` is an index in FORMATS. `offset` has the positions of values, scales and zeros in the plane, with rows
   `stride` bytes apart. `each` rows share a row of scales. `group` numbers of a row share a scale, if the format
   leaves it open. `order` is the offset of the columns' numbers, in their stored order, 0 if they are stored
   ascending. */
struct shape {
    int64_t format, offset[3], stride[3], each, group, order;
};

struct row {
    const uint8_t *values, *scales, *zeros;
    long group;
};

INLINE float half(const uint8_t *from)
{
    uint16_t bits;
    memcpy(&bits, from, 2);
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}

INLINE __m512i wide(const uint8_t *from) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from)); }

INLINE __m512 counted(void)
{
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

/* Looks up 32 numbers in `table`, from the low and the high halves of 16 bytes. */
INLINE void halves(const uint8_t *from, __m512 table, __m512 *w)
{
    const __m512i both = wide(from); /* the permutation uses the low four bits */
    w[0] = _mm512_permutexvar_ps(both, table);
    w[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), table);
}

INLINE void decode_q8_0(const struct row *row, long run, __m512 *w)
{
    const uint8_t *block = row->values + run * 34;
    const __m512 d = _mm512_set1_ps(half(block));
    for (int i = 0; i < 2; i++) {
        const __m128i bytes = _mm_loadu_si128((const __m128i *)(block + 2 + 16 * i));
        w[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), d);
    }
}

INLINE void decode_q4_0(const struct row *row, long run, __m512 *w)
{
    const uint8_t *block = row->values + run * 18;
    const __m512 table = _mm512_sub_ps(counted(), _mm512_set1_ps(8));
    halves(block + 2, _mm512_mul_ps(table, _mm512_set1_ps(half(block))), w);
}

INLINE void decode_q4_1(const struct row *row, long run, __m512 *w)
{
    const uint8_t *block = row->values + run * 20;
    const __m512 d = _mm512_set1_ps(half(block)), m = _mm512_set1_ps(half(block + 2));
    halves(block + 4, _mm512_fmadd_ps(counted(), d, m), w);
}

/* 32 numbers from the halves of 16 bytes and a fifth bit each, which is set in `high`. */
INLINE void fifths(const uint8_t *from, const uint8_t *bits, __m512 low, __m512 high, __m512 *w)
{
    uint32_t mask;
    memcpy(&mask, bits, 4);
    const __m512i both = wide(from);
    w[0] = _mm512_mask_permutexvar_ps(_mm512_permutexvar_ps(both, low), (__mmask16)mask, both, high);
    const __m512i upper = _mm512_srli_epi32(both, 4);
    w[1] = _mm512_mask_permutexvar_ps(_mm512_permutexvar_ps(upper, low), (__mmask16)(mask >> 16), upper, high);
}

INLINE void decode_q5_0(const struct row *row, long run, __m512 *w)
{
    const uint8_t *block = row->values + run * 22;
    const __m512 d = _mm512_set1_ps(half(block)), number = counted();
    fifths(block + 6, block + 2, _mm512_mul_ps(_mm512_sub_ps(number, _mm512_set1_ps(16)), d), _mm512_mul_ps(number, d), w);
}

INLINE void decode_q5_1(const struct row *row, long run, __m512 *w)
{
    const uint8_t *block = row->values + run * 24;
    const __m512 d = _mm512_set1_ps(half(block)), m = _mm512_set1_ps(half(block + 2)), number = counted();
    fifths(block + 8, block + 4, _mm512_fmadd_ps(number, d, m),
           _mm512_fmadd_ps(_mm512_add_ps(number, _mm512_set1_ps(16)), d, m), w);
}

/* Scale and minimum number j of eight, packed in twelve bytes. */
INLINE void scale_min(const uint8_t *packed, int j, float *scale, float *min)
{
    if (j < 4) {
        *scale = packed[j] & 63;
        *min = packed[j + 4] & 63;
    } else {
        *scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4);
        *min = (packed[j + 4] >> 4) | (packed[j] >> 6 << 4);
    }
}

INLINE void decode_q4_k(const struct row *row, long run, __m512 *w)
{
    const uint8_t *block = row->values + run * 144, *values = block + 16;
    const float d = half(block), dmin = half(block + 2);
    for (int j = 0; j < 4; j++) {
        __m512 table[2];
        for (int i = 0; i < 2; i++) {
            float scale, min;
            scale_min(block + 4, 2 * j + i, &scale, &min);
            table[i] = _mm512_fmsub_ps(counted(), _mm512_set1_ps(d * scale), _mm512_set1_ps(dmin * min));
        }
        for (int i = 0; i < 2; i++) {
            const __m512i both = wide(values + 32 * j + 16 * i);
            w[4 * j + i] = _mm512_permutexvar_ps(both, table[0]);
            w[4 * j + 2 + i] = _mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), table[1]);
        }
    }
}

INLINE void decode_q5_k(const struct row *row, long run, __m512 *w)
{
    const uint8_t *block = row->values + run * 176, *high = block + 16, *values = block + 48;
    const float d = half(block), dmin = half(block + 2);
    for (int j = 0; j < 8; j++) {
        float scale, min;
        scale_min(block + 4, j, &scale, &min);
        const __m512 step = _mm512_set1_ps(d * scale), least = _mm512_set1_ps(dmin * min), number = counted();
        const __m512 lower = _mm512_fmsub_ps(number, step, least);
        const __m512 upper = _mm512_fmsub_ps(_mm512_add_ps(number, _mm512_set1_ps(16)), step, least);
        for (int i = 0; i < 2; i++) {
            const __m512i four = _mm512_srli_epi32(wide(values + 32 * (j / 2) + 16 * i), 4 * (j % 2));
            const __m128i bits = _mm_loadu_si128((const __m128i *)(high + 16 * i));
            const __mmask16 fifth = _mm_test_epi8_mask(bits, _mm_set1_epi8((char)(1 << j)));
            w[2 * j + i] = _mm512_mask_permutexvar_ps(_mm512_permutexvar_ps(four, lower), fifth, four, upper);
        }
    }
}

INLINE void decode_q6_k(const struct row *row, long run, __m512 *w)
{
    const uint8_t *low = row->values + run * 210, *high = low + 128;
    const int8_t *scales = (const int8_t *)(high + 64);
    const float d = half(high + 80);
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 2; i++) {
            const int h = j / 4, g = j % 4;
            const __m512i four = _mm512_srli_epi32(wide(low + 64 * h + 32 * (g % 2) + 16 * i), 4 * (g / 2));
            const __m512i two = _mm512_srli_epi32(wide(high + 32 * h + 16 * i), 2 * g);
            const __m512i six = _mm512_or_si512(_mm512_and_si512(four, _mm512_set1_epi32(15)),
                                                _mm512_slli_epi32(_mm512_and_si512(two, _mm512_set1_epi32(3)), 4));
            const __m512 number = _mm512_cvtepi32_ps(_mm512_sub_epi32(six, _mm512_set1_epi32(32)));
            w[2 * j + i] = _mm512_mul_ps(number, _mm512_set1_ps(d * scales[2 * j + i]));
        }
}

/* Two numbers to a byte, the low half first. Scales are powers of two, given by their exponents. */
INLINE void decode_mxfp4(const struct row *row, long run, __m512 *w)
{
    const uint32_t exponent = row->scales[run], bits = exponent ? exponent << 23 : 1u << 22;
    const __m512 numbers = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f,
                                          -3.0f, -4.0f, -6.0f);
    const __m512 table = _mm512_mul_ps(numbers, _mm512_castsi512_ps(_mm512_set1_epi32((int)bits)));
    for (int i = 0; i < 2; i++) {
        const __m128i bytes = _mm_loadl_epi64((const __m128i *)(row->values + run * 16 + 8 * i));
        const __m512i apart = _mm512_cvtepu8_epi64(bytes);
        w[i] = _mm512_permutexvar_ps(_mm512_or_si512(apart, _mm512_slli_epi64(apart, 28)), table);
    }
}

INLINE void decode_fp8(const struct row *row, long run, __m512 *w)
{
    float scale;
    memcpy(&scale, row->scales + run * 32 / row->group * 4, 4);
    /* Read as float16, which has one exponent bit more, the same bits are 2^-8 of the number. */
    const __m512 factor = _mm512_set1_ps(256.0f * scale);
    for (int i = 0; i < 2; i++) {
        const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(row->values + run * 32 + 16 * i)));
        const __m256i size = _mm256_and_si256(v, _mm256_set1_epi16(0x7f));
        const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(v, _mm256_set1_epi16(0x80)), 8);
        const __m512 number = _mm512_cvtph_ps(_mm256_or_si256(_mm256_slli_epi16(size, 7), sign));
        const __mmask16 nan = _mm256_cmpeq_epi16_mask(size, _mm256_set1_epi16(0x7f));
        w[i] = _mm512_mask_mov_ps(_mm512_mul_ps(number, factor), nan, _mm512_set1_ps(__builtin_nanf("")));
    }
}

INLINE void decode_uint4(const struct row *row, long run, __m512 *w)
{
    const long group = run * 32 / row->group;
    const __m512 zero = _mm512_set1_ps(row->zeros[group]), scale = _mm512_set1_ps(half(row->scales + 2 * group));
    halves(row->values + run * 16, _mm512_mul_ps(_mm512_sub_ps(counted(), zero), scale), w);
}

static inline struct row row_of(const struct shape *shape, const uint8_t *plane, long number)
{
    return (struct row){
        plane + shape->offset[0] + number * shape->stride[0],
        plane + shape->offset[1] + number / shape->each * shape->stride[1],
        plane + shape->offset[2] + number * shape->stride[2],
        shape->group,
    };
}

/* Rounds to bfloat16, to the nearest, ties to even, as torch does. */
INLINE __m256i brief(__m512 numbers)
{
    const __m512i bits = _mm512_castps_si512(numbers);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(numbers, numbers, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0)));
}

enum { FLOAT32, FLOAT16, BFLOAT16 };

typedef uint32_t place __attribute__((aligned(1), may_alias)); /* of a column, as planes have it */

/* Destination of decoded numbers: a row of `columns` numbers of the dtype `as`. Number i goes to place order[i], if
   there is an order. */
struct target {
    void *row;
    int as;
    const place *order;
    long columns;
};

/* Stores sixteen numbers from place `at` of a row on. */
INLINE void store_row(__m512 numbers, void *out, int as, long at)
{
    if (as == FLOAT32)
        _mm512_storeu_ps((float *)out + at, numbers);
    else if (as == FLOAT16)
        _mm256_storeu_si256((__m256i *)((uint16_t *)out + at), _mm512_cvtps_ph(numbers, _MM_FROUND_TO_NEAREST_INT));
    else
        _mm256_storeu_si256((__m256i *)((uint16_t *)out + at), brief(numbers));
}

INLINE void store(__m512 numbers, const struct target *to, long at)
{
    if (!to->order) {
        store_row(numbers, to->row, to->as, at);
        return;
    }
    uint32_t few[LANES];
    store_row(numbers, few, to->as, 0);
    for (int i = 0; i < LANES; i++) {
        const long place = to->order[at + i];
        if (place >= to->columns) /* no place: the plane was not checked when it arrived */
            continue;
        if (to->as == FLOAT32)
            ((uint32_t *)to->row)[place] = few[i];
        else
            ((uint16_t *)to->row)[place] = ((const uint16_t *)few)[i];
    }
}

/* Functions for each format. Its numbers come in runs of `RUN`. */
#define FORMAT(NAME, RUN)                                                                                              \
    TARGET static void row_##NAME(const struct row *row, long k, const struct target *to)                              \
    {                                                                                                                  \
        for (long run = 0; run < k / RUN; run++) {                                                                     \
            __m512 w[RUN / LANES];                                                                                     \
            decode_##NAME(row, run, w);                                                                                \
            for (int i = 0; i < RUN / LANES; i++)                                                                      \
                store(w[i], to, run * RUN + i * LANES);                                                                \
        }                                                                                                              \
    }                                                                                                                  \
    INLINE void sums_##NAME(const int tokens, const struct row *row, long k, const float *x, float *out)               \
    {                                                                                                                  \
        __m512 sum[MOST][2];                                                                                           \
        for (int t = 0; t < tokens; t++)                                                                               \
            sum[t][0] = sum[t][1] = _mm512_setzero_ps();                                                               \
        for (long run = 0; run < k / RUN; run++) {                                                                     \
            __m512 w[RUN / LANES];                                                                                     \
            decode_##NAME(row, run, w);                                                                                \
            for (int i = 0; i < RUN / LANES; i++)                                                                      \
                for (int t = 0; t < tokens; t++)                                                                       \
                    sum[t][i % 2] =                                                                                    \
                        _mm512_fmadd_ps(w[i], _mm512_loadu_ps(x + t * k + run * RUN + i * LANES), sum[t][i % 2]);      \
        }                                                                                                              \
        for (int t = 0; t < tokens; t++)                                                                               \
            out[t] = _mm512_reduce_add_ps(_mm512_add_ps(sum[t][0], sum[t][1]));                                        \
    }                                                                                                                  \
    TARGET static void dots_##NAME(int tokens, const struct row *row, long k, const float *x, float *out)              \
    {                                                                                                                  \
        switch (tokens) {                                                                                              \
        case 1: sums_##NAME(1, row, k, x, out); break;                                                                 \
        case 2: sums_##NAME(2, row, k, x, out); break;                                                                 \
        case 3: sums_##NAME(3, row, k, x, out); break;                                                                 \
        default: sums_##NAME(4, row, k, x, out);                                                                       \
        }                                                                                                              \
    }

FORMAT(q8_0, 32)
FORMAT(q4_0, 32)
FORMAT(q4_1, 32)
FORMAT(q5_0, 32)
FORMAT(q5_1, 32)
FORMAT(q4_k, 256)
FORMAT(q5_k, 256)
FORMAT(q6_k, 256)
FORMAT(mxfp4, 32)
FORMAT(fp8, 32)
FORMAT(uint4, 32)

static const struct {
    void (*decode)(const struct row *, long, const struct target *);
    void (*dots)(int, const struct row *, long, const float *, float *);
} FORMATS[] = { /* in the order of `Kind` in formats/blocks.py */
    {row_q8_0, dots_q8_0}, {row_q4_0, dots_q4_0},   {row_q4_1, dots_q4_1}, {row_q5_0, dots_q5_0},
    {row_q5_1, dots_q5_1}, {row_q4_k, dots_q4_k},   {row_q5_k, dots_q5_k}, {row_q6_k, dots_q6_k},
    {row_mxfp4, dots_mxfp4}, {row_fp8, dots_fp8}, {row_uint4, dots_uint4},
};

static const place *order_of(const struct shape *shape, const uint8_t *plane)
{
    return shape->order ? (const place *)(plane + shape->order) : 0;
}

/* Decodes rows first to first + rows - 1 of the matrix [.., k] in `plane` to out [rows, k] of the dtype `as`.
   Takes: a plane as long as `shape` says, with any bytes, and rows inside of it: `check_decode` in planes.py refuses
   others. A number whose place is no column is left out. */
void penstock_decode_blocks(const struct shape *shape, const uint8_t *plane, long first, long rows, long k, void *out,
                            int as, int threads)
{
#pragma omp parallel for schedule(guided) num_threads(threads)
    for (long i = 0; i < rows; i++) {
        const struct row row = row_of(shape, plane, first + i);
        const long size = as == FLOAT32 ? 4 : 2;
        const struct target to = {(uint8_t *)out + i * k * size, as, order_of(shape, plane), k};
        FORMATS[shape->format].decode(&row, k, &to);
    }
}

/* Converts x [tokens, k], bfloat16, to float32, with its columns in the stored order of the matrix in `plane`. */
TARGET static void widen(const struct shape *shape, const uint8_t *plane, const uint16_t *x, float *to, long tokens, long k)
{
    const place *order = order_of(shape, plane);
    for (long t = 0; t < tokens; t++)
        for (long i = 0; i < k; i++) {
            const long from = order ? order[i] : i;
            const uint32_t bits = from < k ? (uint32_t)x[t * k + from] << 16 : 0;
            memcpy(to + t * k + i, &bits, 4);
        }
}

INLINE uint16_t rounded(float number)
{
    return (uint16_t)_mm_cvtsi128_si32(_mm256_castsi256_si128(brief(_mm512_set1_ps(number))));
}

/* One piece: rows first to first + there - 1 of a matrix, with all tokens. */
TARGET static void piece(const struct shape *shape, const uint8_t *plane, const float *x, uint16_t *out, long tokens,
                         long n, long k, long first, long there)
{
    for (long j = first; j < first + there; j++) {
        const struct row row = row_of(shape, plane, j);
        float sums[MOST];
        FORMATS[shape->format].dots((int)tokens, &row, k, x, sums);
        for (long t = 0; t < tokens; t++)
            out[t * n + j] = rounded(sums[t]);
    }
}

/* For each i < count: out[i] [tokens, n] = x[i] [tokens, k] times the transpose of the matrix [n, k] in planes[i].
   `space` holds count * tokens * k float32 numbers. tokens <= MOST.
   Takes: planes as long as `shape` says, with any bytes: `locate` in planes.py refuses others. */
void penstock_block_products(long count, const uint64_t *planes, const uint64_t *x, const uint64_t *out, long tokens,
                             long n, long k, const struct shape *shape, float *space, int threads)
{
    const long pieces = (n + PIECE - 1) / PIECE;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (long i = 0; i < count; i++)
            widen(shape, (const uint8_t *)planes[i], (const uint16_t *)x[i], space + i * tokens * k, tokens, k);
#pragma omp for schedule(guided)
        for (long number = 0; number < count * pieces; number++) {
            const long i = number / pieces, first = number % pieces * PIECE;
            const long there = n - first < PIECE ? n - first : PIECE;
            piece(shape, (const uint8_t *)planes[i], space + i * tokens * k, (uint16_t *)out[i], tokens, n, k, first, there);
        }
    }
}

#endif
