/* Bounds of attention scores with AVX-512 and its products of bytes. bounds.c has the layout of a summary. */

#include "bounds.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define WIDE_INLINE static inline __attribute__((always_inline)) WIDE

int penstock_bounds_wide(void)
{
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

WIDE_INLINE __m512 floats(const uint16_t *from)
{
    const __m256i numbers = _mm256_loadu_si256((const __m256i *)from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

/* exp to a relative error of 2e-7; exp(-inf) is 0. */
WIDE_INLINE __m512 exponential(__m512 x)
{
    const __m512 in = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(200)), _mm512_set1_ps(-200));
    const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(in, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693145752f), in);
    r = _mm512_fnmadd_ps(whole, _mm512_set1_ps(1.42860677e-6f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    const float factors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
    for (int i = 0; i < 7; i++)
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(factors[i]));
    return _mm512_scalef_ps(p, whole);
}

WIDE_INLINE __m512 bounded_wide(__m512 bound, const struct rule *rule)
{
    if (rule->softcap > 0) {
        const __m512 one = _mm512_set1_ps(1), cap = _mm512_set1_ps(rule->softcap);
        const __m512 power = exponential(_mm512_mul_ps(bound, _mm512_set1_ps(2 / rule->softcap)));
        const __m512 tanh = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2), _mm512_add_ps(power, one)));
        const __mmask16 number = _mm512_cmp_ps_mask(bound, bound, _CMP_ORD_Q);
        bound = _mm512_mask_mul_ps(bound, number, cap, _mm512_add_ps(tanh, _mm512_set1_ps(1e-6f)));
    }
    return _mm512_fmadd_ps(_mm512_set1_ps(rule->rounding), _mm512_abs_ps(bound), bound);
}

/* Four numbers of a query, in all lanes. */
WIDE_INLINE __m512i four(const int8_t *numbers)
{
    int32_t together;
    memcpy(&together, numbers, 4);
    return _mm512_set1_epi32(together);
}

/* products[t] = the products of query t with 16 tokens. */
WIDE_INLINE void sixteen_wide(const int queries, const int bits, const struct query *q, const uint8_t *numbers,
                              long wide, __m512i products[MOST])
{
    const int other = queries <= MOST / 2; /* few queries: every second step has own sums, none waits */
    __m512i high[2][MOST], low[2][MOST];
#pragma GCC unroll 8
    for (int t = 0; t < queries; t++)
        high[0][t] = low[0][t] = high[1][t] = low[1][t] = _mm512_setzero_si512();
    const __m512i half = _mm512_set1_epi8(15);
    for (long j = 0; j < wide; j += 8) {
        __m512i first, second;
        if (bits == 8) {
            first = _mm512_loadu_si512(numbers + j * LANES);
            second = _mm512_loadu_si512(numbers + (j + 4) * LANES);
        } else {
            const __m512i both = _mm512_loadu_si512(numbers + j / 2 * LANES);
            first = _mm512_and_si512(both, half);
            second = _mm512_and_si512(_mm512_srli_epi16(both, 4), half);
        }
#pragma GCC unroll 8
        for (int t = 0; t < queries; t++) {
            high[0][t] = _mm512_dpbusd_epi32(high[0][t], first, four(q[t].high + j));
            low[0][t] = _mm512_dpbusd_epi32(low[0][t], first, four(q[t].low + j));
            high[other][t] = _mm512_dpbusd_epi32(high[other][t], second, four(q[t].high + j + 4));
            low[other][t] = _mm512_dpbusd_epi32(low[other][t], second, four(q[t].low + j + 4));
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < queries; t++) {
        const __m512i sum = _mm512_add_epi32(high[0][t], high[1][t]), rest = _mm512_add_epi32(low[0][t], low[1][t]);
        products[t] = _mm512_sub_epi32(_mm512_add_epi32(_mm512_slli_epi32(sum, 7), rest), _mm512_set1_epi32(q[t].offset));
    }
}

/* product[t] = query t times the page's centre. */
WIDE_INLINE void centre_wide(const int queries, const struct query *q, const struct summary *s, long wide,
                             float product[MOST])
{
    __m512 sums[MOST];
    for (int t = 0; t < queries; t++)
        sums[t] = _mm512_setzero_ps();
    for (long j = 0; j < wide; j += LANES) { /* past the last column a query has zeros, and a summary other data */
        const __mmask16 there = wide - j >= LANES ? 0xffff : 0xff;
        const __m512 centre = _mm512_maskz_mov_ps(there, floats(s->centre + j));
#pragma GCC unroll 8
        for (int t = 0; t < queries; t++)
            sums[t] = _mm512_fmadd_ps(_mm512_loadu_ps(q[t].plain + j), centre, sums[t]);
    }
    for (int t = 0; t < queries; t++)
        product[t] = _mm512_reduce_add_ps(sums[t]);
}

WIDE_INLINE void page_wide(const int queries, const int bits, const struct query *q, const struct summary *s, long wide,
                           const struct rule *rule, float *lower, float *upper, long apart)
{
    const __m512 none = _mm512_set1_ps(-INFINITY), scaling = _mm512_set1_ps(rule->scaling);
    __m512 bounds[MOST][LONGEST / LANES], top[MOST], worst[MOST], largest[MOST];
    float product[MOST];
    __mmask16 strange[MOST] = {0};
    for (int t = 0; t < queries; t++) {
        top[t] = none;
        worst[t] = largest[t] = _mm512_setzero_ps();
    }
    centre_wide(queries, q, s, wide, product);
    const int blocks = (s->count + LANES - 1) / LANES;
    for (int b = 0; b < blocks; b++) {
        __m512i products[MOST];
        sixteen_wide(queries, bits, q, s->numbers + b * LANES * wide * bits / 8, wide, products);
        const int left = s->count - b * LANES;
        const __mmask16 there = left >= LANES ? 0xffff : (__mmask16)((1 << left) - 1);
        const __m512 scale = floats(s->scale + b * LANES), error = floats(s->error + b * LANES);
        for (int t = 0; t < queries; t++) {
            const __m512 least = _mm512_min_ps(_mm512_mul_ps(_mm512_set1_ps(q[t].norm), error),
                                               _mm512_mul_ps(_mm512_set1_ps(q[t].half_sum), scale));
            const __m512 more = _mm512_fmadd_ps(_mm512_set1_ps(q[t].unresolved), scale,
                                                _mm512_set1_ps(q[t].slip * s->reach));
            const __m512 wrong = _mm512_add_ps(least, more);
            const __m512 score = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[t]),
                                                 _mm512_mul_ps(_mm512_set1_ps(q[t].step), scale),
                                                 _mm512_set1_ps(product[t]));
            const __m512 most = _mm512_mul_ps(scaling, _mm512_add_ps(score, wrong));
            strange[t] |= _mm512_mask_fpclass_ps_mask(there, most, 0x99); /* NaN or infinite: a softcap would hide it */
            const __m512 bound = bounded_wide(most, rule);
            bounds[t][b] = _mm512_mask_mov_ps(none, there, bound);
            top[t] = _mm512_max_ps(top[t], bounds[t][b]);
            worst[t] = _mm512_mask_max_ps(worst[t], there, worst[t], _mm512_mul_ps(scaling, wrong));
            largest[t] = _mm512_mask_max_ps(largest[t], there, largest[t], _mm512_abs_ps(bound));
        }
    }
    for (int t = 0; t < queries; t++) {
        const float most = _mm512_reduce_max_ps(top[t]);
        __m512 sum = _mm512_setzero_ps();
        for (int b = 0; b < blocks; b++)
            sum = _mm512_add_ps(sum, exponential(_mm512_sub_ps(bounds[t][b], _mm512_set1_ps(most))));
        if (strange[t])
            unknown(lower + t * apart, upper + t * apart);
        else
            conclude(most, _mm512_reduce_add_ps(sum), _mm512_reduce_max_ps(worst[t]), _mm512_reduce_max_ps(largest[t]),
                     rule, lower + t * apart, upper + t * apart);
    }
}

#define CASE(N)                                                                                                        \
    case N:                                                                                                            \
        if (bits == 8)                                                                                                 \
            page_wide(N, 8, q, s, wide, rule, lower, upper, apart);                                                    \
        else                                                                                                           \
            page_wide(N, 4, q, s, wide, rule, lower, upper, apart);                                                    \
        break;

WIDE void penstock_bounds_page_wide(int queries, int bits, const struct query *q, const struct summary *s, long wide,
                                    const struct rule *rule, float *lower, float *upper, long apart)
{
    switch (queries) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
        CASE(5)
        CASE(6)
        CASE(7)
        CASE(8)
    }
}

#else

int penstock_bounds_wide(void) { return 0; }

void penstock_bounds_page_wide(int queries, int bits, const struct query *q, const struct summary *s, long wide,
                               const struct rule *rule, float *lower, float *upper, long apart)
{
    (void)queries, (void)bits, (void)q, (void)s, (void)wide, (void)rule, (void)lower, (void)upper, (void)apart;
}

#endif
