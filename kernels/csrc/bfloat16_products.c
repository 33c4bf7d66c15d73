/* Products of a few rows with several bfloat16 matrices in one call, in the order of summation of oneDNN's kernels.

   One output is a sum over k, ascending, of products of bfloat16 pairs, in a float32 accumulator that VDPBF16PS
   updates. After every `chunk` elements a new accumulator begins, and the accumulators are added in turn. oneDNN
   does the same, but first copies the matrix into blocks. Here sixteen rows of the matrix are transposed in
   registers, so that memory is read once, at its own speed. */

#include "products.h"

#ifdef PENSTOCK_X86

/* x [tokens, k] times `there` rows, at most `blocks` times sixteen, of w [.., k], into out [tokens, n]. */
INLINE void multiply(const int tokens, const int blocks, const uint16_t *w, const uint16_t *x, uint16_t *out, long n,
                     long k, long chunk, long there)
{
    __m512 sum[MOST][2], total[MOST][2];
    for (int t = 0; t < tokens; t++)
        for (int b = 0; b < blocks; b++) {
            sum[t][b] = _mm512_setzero_ps();
            total[t][b] = _mm512_set1_ps(-0.0f); /* neutral in a sum, also for -0 */
        }
    for (long at = 0; at < k; at += STEP) {
        const long left = k - at;
        if (at && at % chunk == 0)
            for (int t = 0; t < tokens; t++)
                for (int b = 0; b < blocks; b++) {
                    total[t][b] = _mm512_add_ps(total[t][b], sum[t][b]);
                    sum[t][b] = _mm512_setzero_ps();
                }
        const __mmask32 mask = left >= STEP ? ~(__mmask32)0 : ((__mmask32)1 << left) - 1;
        for (int b = 0; b < blocks; b++) {
            __m512i row[LANES], column[LANES];
            for (int i = 0; i < LANES; i++) {
                const long number = b * LANES + i < there ? b * LANES + i : there - 1;
                const uint16_t *from = w + number * k + at;
                row[i] = _mm512_maskz_loadu_epi16(mask, from);
                _mm_prefetch((const char *)(from + blocks * LANES * k), _MM_HINT_T1);
            }
            transpose(row, column);
            /* Nothing is added for pairs past the last: it would turn -0 into 0. */
            for (int j = 0; j < LANES && 2 * j < left; j++)
                for (int t = 0; t < tokens; t++) {
                    const uint16_t *pair = x + t * k + at + 2 * j;
                    int32_t both = *pair;
                    if (2 * j + 1 < left)
                        __builtin_memcpy(&both, pair, sizeof both);
                    sum[t][b] = _mm512_dpbf16_ps(sum[t][b], (__m512bh)_mm512_set1_epi32(both), (__m512bh)column[j]);
                }
        }
    }
    for (int t = 0; t < tokens; t++)
        for (int b = 0; b < blocks; b++) {
            const long left = there - b * LANES;
            const __mmask16 mask = left >= LANES ? 0xffff : (__mmask16)((1 << left) - 1);
            const __m512 whole = chunk < k ? _mm512_add_ps(total[t][b], sum[t][b]) : sum[t][b];
            _mm256_mask_storeu_epi16(out + t * n + b * LANES, mask, (__m256i)_mm512_cvtneps_pbh(whole));
        }
}

#define CASE(T)                                                                                                        \
    case T:                                                                                                            \
        if (there > LANES)                                                                                             \
            multiply(T, 2, w, x, out, n, k, chunk, there);                                                             \
        else                                                                                                           \
            multiply(T, 1, w, x, out, n, k, chunk, there);                                                             \
        break;

TARGET void penstock_piece(int tokens, const uint16_t *w, const uint16_t *x, uint16_t *out, long n, long k,
                           long chunk, long there)
{
    switch (tokens) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
    }
}

int penstock_available(void)
{
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

/* For each i < count: out[i] [tokens, n] = x[i] [tokens, k] times the transpose of w[i] [n, k], all contiguous.
   `threads` threads of torch's OpenMP runtime share the pieces. tokens <= MOST. chunk is a multiple of STEP.
   Takes: matrices of n * k numbers, inputs of tokens * k, with any bits. Refuses nothing: few_rows.py
   finds it for shapes that it takes. */
void penstock_products(long count, const uint64_t *w, const uint64_t *x, const uint64_t *out, long tokens, long n, long k,
                       long chunk, int threads)
{
    const long high = 2 * LANES, pieces = (n + high - 1) / high;
#pragma omp parallel for schedule(guided) num_threads(threads)
    for (long number = 0; number < count * pieces; number++) {
        const long i = number / pieces, first = number % pieces * high;
        const long there = n - first < high ? n - first : high;
        penstock_piece((int)tokens, (const uint16_t *)w[i] + first * k, (const uint16_t *)x[i], (uint16_t *)out[i] + first,
                       n, k, chunk, there);
    }
}

#else

int penstock_available(void) { return 0; }
void penstock_products(long count, const uint64_t *w, const uint64_t *x, const uint64_t *out, long tokens, long n, long k,
                       long chunk, int threads)
{
    (void)count, (void)w, (void)x, (void)out, (void)tokens, (void)n, (void)k, (void)chunk, (void)threads;
}

#endif
