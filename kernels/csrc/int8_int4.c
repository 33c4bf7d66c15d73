/* Products of a few rows with several matrices of 8-bit or 4-bit numbers in one call, and decoding of such matrices.

   int8: numbers [n, k], one scale per row. int4: blocks of 64 rows. A byte of column j holds row d (low half) and
   row d + 32 (high half) as number + 8. Each group of columns has a scale and a zero per row. torch's packed kernels
   read the same bytes. Numbers become bfloat16 pairs in registers, where they are exact, and VDPBF16PS adds their
   products with the inputs in float32. A group's scale and zero are applied to its sum. So each byte of the matrix
   is read once, for up to MOST rows of inputs. */

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include "lanes.h"

#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,avx512vbmi")))
#define WIDE_INLINE static inline __attribute__((always_inline)) WIDE
#define MOST 8   /* rows of inputs in one pass over the matrix */
#define HIGHEST 8 /* the most rows of an int8 matrix at a time */
#define BLOCK 64 /* rows of a block of an int4 matrix */
#define HALF 32  /* bytes of one column in a block: each holds two rows */
#define LARGEST 128 /* the most columns in a group */

INLINE float widened(uint16_t number)
{
    union {
        uint32_t bits;
        float value;
    } both = {(uint32_t)number << 16};
    return both.value;
}

INLINE uint16_t narrowed(float number)
{
    return (uint16_t)_mm_cvtsi128_si32((__m128i)_mm_cvtneps_pbh(_mm_set_ss(number)));
}

INLINE __m512 low_floats(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }

INLINE __m512 high_floats(__m512i pairs)
{
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

/* ---- int8 ---- */

INLINE void floats_of_bytes(const int8_t *from, __mmask32 mask, __m512 *low, __m512 *high)
{
    const __m256i bytes = _mm256_maskz_loadu_epi8(mask, from);
    *low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
    *high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
}

INLINE __mmask32 columns_left(long left) { return left >= STEP ? ~(__mmask32)0 : ((__mmask32)1 << left) - 1; }

/* Adds the products of STEP columns, or as many as `mask` has, to sum [tokens][high]. */
INLINE void step_int8(const int tokens, const int high, const int8_t *w, const uint16_t *x, long k, __mmask32 mask,
                      __m512 sum[MOST][HIGHEST])
{
    __m512bh row[HIGHEST];
#pragma GCC unroll 8
    for (int r = 0; r < high; r++) {
        __m512 low, top;
        floats_of_bytes(w + r * k, mask, &low, &top);
        _mm_prefetch((const char *)(w + (r + high) * k), _MM_HINT_T1);
        row[r] = _mm512_cvtne2ps_pbh(top, low);
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
        const __m512bh input = (__m512bh)_mm512_maskz_loadu_epi16(mask, x + t * k);
#pragma GCC unroll 8
        for (int r = 0; r < high; r++)
            sum[t][r] = _mm512_dpbf16_ps(sum[t][r], input, row[r]);
    }
}

/* x [tokens, k] times `high` rows of w [.., k], into out [tokens, n]. */
INLINE void multiply_int8(const int tokens, const int high, const int8_t *w, const uint16_t *scales, const uint16_t *x,
                          uint16_t *out, long n, long k)
{
    __m512 sum[MOST][HIGHEST];
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
        for (int r = 0; r < high; r++)
            sum[t][r] = _mm512_setzero_ps();
    long at = 0;
    for (; at + STEP <= k; at += STEP)
        step_int8(tokens, high, w + at, x + at, k, ~(__mmask32)0, sum);
    if (at < k)
        step_int8(tokens, high, w + at, x + at, k, columns_left(k - at), sum);
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
        for (int r = 0; r < high; r++)
            out[t * n + r] = narrowed(_mm512_reduce_add_ps(sum[t][r]) * widened(scales[r]));
}

#define ROWS_8(T) (T <= 2 ? HIGHEST : T <= 4 ? 4 : 2) /* as many as keep all sums in registers */

#define CASE_8(T)                                                                                                      \
    case T: {                                                                                                          \
        long r = 0;                                                                                                    \
        for (; r + ROWS_8(T) <= there; r += ROWS_8(T))                                                                 \
            multiply_int8(T, ROWS_8(T), w + r * k, scales + r, x, out + r, n, k);                                      \
        for (; r < there; r++)                                                                                         \
            multiply_int8(T, 1, w + r * k, scales + r, x, out + r, n, k);                                              \
        break;                                                                                                         \
    }

TARGET static void piece_int8(int tokens, const int8_t *w, const uint16_t *scales, const uint16_t *x, uint16_t *out,
                              long n, long k, long there)
{
    switch (tokens) {
        CASE_8(1)
        CASE_8(2)
        CASE_8(3)
        CASE_8(4)
        CASE_8(5)
        CASE_8(6)
        CASE_8(7)
        CASE_8(8)
    }
}

TARGET static void decode_row(const int8_t *row, uint16_t scale, uint16_t *out, long k)
{
    const __m512 factor = _mm512_set1_ps(widened(scale));
    for (long at = 0; at < k; at += STEP) {
        const __mmask32 mask = columns_left(k - at);
        __m512 low, high;
        floats_of_bytes(row + at, mask, &low, &high);
        const __m512bh numbers = _mm512_cvtne2ps_pbh(_mm512_mul_ps(high, factor), _mm512_mul_ps(low, factor));
        _mm512_mask_storeu_epi16(out + at, mask, (__m512i)numbers);
    }
}

static long aligned(long size) { return (size + 63) / 64 * 64; }

/* ---- int4 ---- */

struct int4 { /* a block of 64 rows */
    const uint8_t *numbers; /* [whole, HALF] */
    const uint16_t *scales; /* [whole / group, stride], the first BLOCK * 2 of each are this block's */
    long whole, group, stride; /* columns with the padding of the last group */
};

static struct int4 block_of(const void *matrix, long number, long n, long k, long group)
{
    const long blocks = (n + BLOCK - 1) / BLOCK, whole = (k + group - 1) / group * group;
    const uint8_t *numbers = matrix;
    const uint16_t *scales = (const uint16_t *)(numbers + blocks * whole * HALF);
    return (struct int4){numbers + number * whole * HALF, scales + number * BLOCK * 2, whole, group, blocks * BLOCK * 2};
}

/* Bytes of two columns that make up pairs: 16-bit lane i receives the byte of row i / 2 of column i % 2. `half` says
   which rows in a byte column, 0 to 15 or 16 to 31. */
WIDE_INLINE __m512i picked(int half)
{
    uint8_t from[64];
    for (int i = 0; i < 64; i++)
        from[i] = (uint8_t)(i / 2 % 2 * HALF + half * LANES + i / 4);
    return _mm512_loadu_si512(from);
}

/* The bfloat16 number for each value of the lowest five bits, of which the fifth has no meaning. */
WIDE_INLINE __m512i int4_numbers(void)
{
    uint16_t numbers[32];
    for (int i = 0; i < 32; i++)
        numbers[i] = narrowed((float)(i % 16 - 8));
    return _mm512_loadu_si512(numbers);
}

/* Sums of products of one group: sum[t][b] receives sixteen rows of the block, from 16 * (first + b % halves) + 32 *
   (b / halves). */
WIDE_INLINE void group_sums(const int tokens, const int halves, const int first, const uint8_t *numbers, long group,
                            const uint16_t *const x[MOST], const __m512i pick[2], const __m512i table,
                            __m512 sum[MOST][4])
{
    for (int t = 0; t < tokens; t++)
        for (int b = 0; b < 2 * halves; b++)
            sum[t][b] = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (long j = 0; j < group; j += 2) {
        const __m512i bytes = _mm512_loadu_si512(numbers + j * HALF);
        __m512bh pairs[4];
        for (int h = 0; h < halves; h++) {
            const __m512i mine = _mm512_permutexvar_epi8(pick[first + h], bytes);
            pairs[h] = (__m512bh)_mm512_permutexvar_epi16(mine, table);
            pairs[halves + h] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(mine, 4), table);
        }
        for (int t = 0; t < tokens; t++) {
            int32_t two;
            __builtin_memcpy(&two, x[t] + j, sizeof two);
            const __m512bh both = (__m512bh)_mm512_set1_epi32(two);
            for (int b = 0; b < 2 * halves; b++)
                sum[t][b] = _mm512_dpbf16_ps(sum[t][b], both, pairs[b]);
        }
    }
}

INLINE __m512 sum_of_inputs(const uint16_t *x, long group)
{
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    __m512 sum = _mm512_setzero_ps();
    for (long j = 0; j < group; j += STEP)
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(x + j), ones);
    return _mm512_set1_ps(_mm512_reduce_add_ps(sum));
}

/* x [tokens, k] times `there` rows of a block, into out [tokens, n]. */
WIDE_INLINE void multiply_int4(const int tokens, const int halves, const struct int4 w, const uint16_t *x, uint16_t *out,
                               long n, long k, long there)
{
    const __m512i pick[2] = {picked(0), picked(1)}, table = int4_numbers();
    uint16_t tail[MOST][LARGEST] = {0};
    __m512 total[MOST][4];
    for (int t = 0; t < tokens; t++)
        for (int b = 0; b < 4; b++)
            total[t][b] = _mm512_setzero_ps();
    const uint16_t *scales = w.scales;
    for (long at = 0; at < w.whole; at += w.group, scales += w.stride) {
        const uint16_t *inputs[MOST];
        __m512 inputs_sum[MOST];
        for (int t = 0; t < tokens; t++) {
            inputs[t] = x + t * k + at;
            if (k - at < w.group) {
                __builtin_memcpy(tail[t], inputs[t], 2 * (size_t)(k - at));
                inputs[t] = tail[t];
            }
            inputs_sum[t] = sum_of_inputs(inputs[t], w.group);
        }
        for (int line = 0; line < 4; line++)
            _mm_prefetch((const char *)(scales + 4 * w.stride + 32 * line), _MM_HINT_T0);
        for (int first = 0; first < 2; first += halves) {
            __m512 sum[MOST][4];
            group_sums(tokens, halves, first, w.numbers + at * HALF, w.group, inputs, pick, table, sum);
            for (int b = 0; b < 2 * halves; b++) {
                const int rows = first + b % halves + 2 * (b / halves);
                const __m512i both = _mm512_loadu_si512(scales + 2 * LANES * rows);
                for (int t = 0; t < tokens; t++) {
                    const __m512 so_far = _mm512_fmadd_ps(inputs_sum[t], high_floats(both), total[t][rows]);
                    total[t][rows] = _mm512_fmadd_ps(sum[t][b], low_floats(both), so_far);
                }
            }
        }
    }
    for (int t = 0; t < tokens; t++)
        for (int b = 0; b < 4; b++) {
            const long left = there - b * LANES;
            const __mmask16 mask = left >= LANES ? 0xffff : left > 0 ? (__mmask16)((1 << left) - 1) : 0;
            _mm256_mask_storeu_epi16(out + t * n + b * LANES, mask, (__m256i)_mm512_cvtneps_pbh(total[t][b]));
        }
}

#define CASE_4(T)                                                                                                      \
    case T:                                                                                                            \
        multiply_int4(T, T <= 4 ? 2 : 1, w, x, out, n, k, there);                                                      \
        break;

WIDE static void piece_int4(int tokens, struct int4 w, const uint16_t *x, uint16_t *out, long n, long k, long there)
{
    switch (tokens) {
        CASE_4(1)
        CASE_4(2)
        CASE_4(3)
        CASE_4(4)
        CASE_4(5)
        CASE_4(6)
        CASE_4(7)
        CASE_4(8)
    }
}

/* Sixteen numbers of a column, rows from 16 * part. */
WIDE_INLINE __m512 decoded_column(const uint8_t *column, int part, __m512 table, __m512 scale, __m512 zero)
{
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(column + part % 2 * LANES)));
    const __m512i number = part < 2 ? bytes : _mm512_srli_epi32(bytes, 4);
    return _mm512_fmadd_ps(_mm512_permutexvar_ps(number, table), scale, zero);
}

/* `there` rows of a block into out [there, k]. */
WIDE static void decode_block(struct int4 w, uint16_t *out, long k, long there)
{
    float numbers[LANES];
    uint16_t order[STEP];
    for (int i = 0; i < LANES; i++)
        numbers[i] = (float)(i - 8);
    for (int i = 0; i < STEP; i++)
        order[i] = (uint16_t)(i / 2 + i % 2 * LANES);
    const __m512 table = _mm512_loadu_ps(numbers);
    const __m512i paired = _mm512_loadu_si512(order);
    for (long at = 0; at < k; at += STEP) {
        const __mmask32 mask = columns_left(k - at);
        const uint16_t *scales = w.scales + at / w.group * w.stride;
        for (int part = 0; part * LANES < there; part++) {
            const __m512i both = _mm512_loadu_si512(scales + 2 * LANES * part);
            const __m512 scale = low_floats(both), zero = high_floats(both);
            __m512i column[LANES], row[LANES];
            for (int i = 0; i < LANES; i++) {
                const uint8_t *from = w.numbers + (at + 2 * i) * HALF;
                const __m512bh two = _mm512_cvtne2ps_pbh(decoded_column(from + HALF, part, table, scale, zero),
                                                         decoded_column(from, part, table, scale, zero));
                column[i] = _mm512_permutexvar_epi16(paired, (__m512i)two);
            }
            transpose(column, row);
            for (int i = 0; i < LANES && part * LANES + i < there; i++)
                _mm512_mask_storeu_epi16(out + (part * LANES + i) * k + at, mask, row[i]);
        }
    }
}

int penstock_packed_available(void)
{
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi");
}

#define HIGH 64 /* rows in a piece of an int8 matrix */

static long smaller(long a, long b) { return a < b ? a : b; }

/* For each i < count: out[i] [tokens, n] = x[i] [tokens, k] times the transpose of w[i], all contiguous. `threads`
   threads of torch's OpenMP runtime share the pieces.
   Takes: matrices as long as Int8.lengths(n, k), with any bytes: `locate` in planes.py refuses others. */
void penstock_products_int8(long count, const uint64_t *w, const uint64_t *x, const uint64_t *out, long tokens, long n,
                            long k, int threads)
{
    const long pieces = (n + HIGH - 1) / HIGH;
#pragma omp parallel for schedule(guided) num_threads(threads)
    for (long number = 0; number < count * pieces; number++) {
        const long i = number / pieces, first = number % pieces * HIGH;
        const int8_t *numbers = (const int8_t *)w[i];
        const uint16_t *scales = (const uint16_t *)(numbers + aligned(n * k)) + first;
        for (long t = 0; t < tokens; t += MOST)
            piece_int8((int)smaller(MOST, tokens - t), numbers + first * k, scales, (const uint16_t *)x[i] + t * k,
                       (uint16_t *)out[i] + t * n + first, n, k, smaller(HIGH, n - first));
    }
}

/* The same for int4.
   Takes: matrices as long as Int4.lengths(n, k), with any bytes: `locate` in planes.py refuses others. */
void penstock_products_int4(long count, const uint64_t *w, const uint64_t *x, const uint64_t *out, long tokens, long n,
                            long k, long group, int threads)
{
    const long blocks = (n + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(guided) num_threads(threads)
    for (long number = 0; number < count * blocks; number++) {
        const long i = number / blocks, first = number % blocks * BLOCK;
        const struct int4 block = block_of((const void *)w[i], number % blocks, n, k, group);
        for (long t = 0; t < tokens; t += MOST)
            piece_int4((int)smaller(MOST, tokens - t), block, (const uint16_t *)x[i] + t * k,
                       (uint16_t *)out[i] + t * n + first, n, k, smaller(BLOCK, n - first));
    }
}

/* out [rows, k] bfloat16 = the rows from `first` of the matrix [n, k] at w.
   Takes: a plane as long as Int8.lengths(n, k), with any bytes, and rows inside of it: `check_decode` in
   planes.py refuses others. */
void penstock_decode_int8(const void *w, void *out, long n, long k, long first, long rows, int threads)
{
    const int8_t *numbers = w;
    const uint16_t *scales = (const uint16_t *)(numbers + aligned(n * k));
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++)
        decode_row(numbers + (first + row) * k, scales[first + row], (uint16_t *)out + row * k, k);
}

/* The same for int4. `first` is a multiple of BLOCK.
   Takes: a plane as long as Int4.lengths(n, k), with any bytes, and rows inside of it: `check_decode` in
   planes.py refuses others. */
void penstock_decode_int4(const void *w, void *out, long n, long k, long group, long first, long rows, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row += BLOCK)
        decode_block(block_of(w, (first + row) / BLOCK, n, k, group), (uint16_t *)out + row * k, k,
                     smaller(BLOCK, rows - row));
}

#else

int penstock_packed_available(void) { return 0; }

#endif
