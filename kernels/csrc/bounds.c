/* Bounds of attention's scores from keys of 8 or 4 bits, page by page.

   Of each page and head the summary holds (W is the head dimension, filled up to a multiple of 8):

       int32 count     tokens in it; 0: its keys are not finite, and nothing is known of it
       float reach     the greatest norm of a key
       bf16  centre[W]
       bf16  scale[P]  of each token
       bf16  error[P]  norm of what the numbers leave of each token
       (up to a multiple of 64 bytes)
       uint8 numbers   [P / 16][W / 4][16 tokens][4 columns] of 8 bits, or [P / 16][W / 8][16 tokens][4 columns] where a
                       byte has column 8 j + c in its low and 8 j + 4 + c in its high half; number + 128, or + 8

   A key is its centre plus its rotated numbers times its scale plus the error. The query is rotated too, and made
   numbers of 15 bits in two bytes; what that leaves out, and every rounding, is added to the bound. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16    /* tokens that are computed at a time */
#define MOST 8      /* queries that are computed in one pass over a page */
#define WIDEST 512  /* columns: sums of products then fit 32 bits */
#define LONGEST 256 /* tokens of a page */
#define PAGES 8     /* pages that a thread takes at a time */
#define STEPS 16256 /* the greatest number of a query: 127 * 128 */
#define ULP 5.9604645e-8f /* half a unit in the last place of 1 */

struct summary {
    int32_t count;
    float reach;
    const uint16_t *centre, *scale, *error;
    const uint8_t *numbers;
};

struct query {
    float plain[WIDEST];
    int8_t high[WIDEST], low[WIDEST];
    int32_t offset;     /* what the numbers' own offset adds to the product */
    float step;         /* of the numbers high * 128 + low */
    float norm;         /* by which a token's error counts */
    float half_sum;     /* by which its scale counts, if that is less */
    float unresolved;   /* by which its scale counts besides: what the query's own numbers leave */
    float slip;         /* by which its page's reach counts: roundings */
};

struct rule { /* how a score is made of a product */
    float scaling, softcap, rounding; /* softcap 0: none */
};

static inline float widened(uint16_t number)
{
    const union { uint32_t bits; float number; } wide = {(uint32_t)number << 16};
    return wide.number;
}

static long wide_of(long dim) { return (dim + 7) / 8 * 8; }

static long numbers_at(long tokens, long wide) { return (8 + 2 * wide + 4 * tokens + 63) / 64 * 64; }

static long head_bytes(long tokens, long wide, int bits) { return numbers_at(tokens, wide) + tokens * wide * bits / 8; }

static struct summary summary_of(const uint8_t *from, long tokens, long wide)
{
    struct summary s = {.centre = (const uint16_t *)(from + 8)};
    memcpy(&s.count, from, 4);
    memcpy(&s.reach, from + 4, 4);
    s.scale = s.centre + wide;
    s.error = s.scale + tokens;
    s.numbers = from + numbers_at(tokens, wide);
    return s;
}

/* Walsh-Hadamard transforms of the longest blocks of 2^n columns that `wide` is a multiple of; keeps norms. */
static void rotate(float *row, long wide)
{
    const long block = wide & -wide;
    for (long half = 1; half < block; half *= 2)
        for (long at = 0; at < wide; at += 2 * half)
            for (long j = at; j < at + half; j++) {
                const float a = row[j], b = row[j + half];
                row[j] = a + b, row[j + half] = a - b;
            }
    const float factor = 1 / sqrtf((float)block);
    for (long j = 0; j < wide; j++)
        row[j] *= factor;
}

static void prepare(struct query *q, const float *from, long dim, long wide, int bits)
{
    float rotated[WIDEST];
    memset(q, 0, sizeof *q);
    memcpy(q->plain, from, sizeof(float) * dim);
    memcpy(rotated, q->plain, sizeof(float) * wide);
    rotate(rotated, wide);
    double squares = 0, sum = 0;
    float most = 0;
    for (long j = 0; j < wide; j++) {
        squares += (double)q->plain[j] * q->plain[j];
        sum += fabsf(rotated[j]);
        most = fmaxf(most, fabsf(rotated[j]));
    }
    const int levels = bits == 8 ? 127 : 7;
    q->norm = (float)(sqrt(squares) * 1.00001);
    q->half_sum = (float)(sum * 0.50001);
    q->slip = q->norm * ULP * (4 * wide + 64);
    if (most > 1e-30f) {
        q->step = most / STEPS;
        q->unresolved = q->step * 0.502f * levels * wide;
    } else
        q->unresolved = most * levels * wide; /* too small for numbers */
    int32_t total = 0;
    for (long j = 0; j < wide && most > 1e-30f; j++) {
        const int number = (int)rintf(fmaxf(-STEPS, fminf(STEPS, rotated[j] / q->step)));
        const int high = (number + (number < 0 ? -64 : 64)) / 128;
        q->high[j] = (int8_t)high;
        q->low[j] = (int8_t)(number - 128 * high);
        total += number;
    }
    q->offset = (levels + 1) * total;
}

static float bounded(float bound, const struct rule *rule)
{
    if (rule->softcap > 0)
        bound = rule->softcap * (tanhf(bound / rule->softcap) + 1e-6f);
    return bound + rule->rounding * fabsf(bound);
}

static void unknown(float *lower, float *upper) { *lower = -INFINITY, *upper = INFINITY; }

/* From the greatest bound of a token, the sum of exp(bound - greatest), the greatest error and the greatest bound as
   it is without its sign. */
static void conclude(float top, float sum, float worst, float largest, const struct rule *rule, float *lower,
                     float *upper)
{
    const float bound = top + logf(sum), slack = 1e-5f + 4 * ULP * fabsf(bound);
    *upper = bound + slack;
    *lower = bound - slack - (2 + 2 * rule->rounding) * worst - 2 * rule->rounding * largest;
    if (rule->softcap > 0)
        *lower -= 4e-6f * rule->softcap;
    if (!isfinite(*upper) || !isfinite(*lower)) /* what overflowed may be anything */
        unknown(lower, upper);
}

static float centre_product(const struct query *q, const struct summary *s, long wide)
{
    float lanes[8] = {0};
    for (long j = 0; j < wide; j += 8)
        for (int i = 0; i < 8; i++)
            lanes[i] += q->plain[j + i] * widened(s->centre[j + i]);
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

/* ---- anywhere ---- */

/* out [16] = products of the query's numbers with those of 16 tokens. */
static void sixteen(const struct query *q, const uint8_t *numbers, long wide, int bits, int32_t *out)
{
    int32_t high[LANES] = {0}, low[LANES] = {0};
    for (long j = 0; j < wide; j += 4) {
        const uint8_t *four = numbers + (bits == 8 ? j : j / 8 * 4) * LANES;
        const int shift = bits == 8 ? 0 : (int)(j & 4), mask = bits == 8 ? 255 : 15;
        for (int t = 0; t < LANES; t++)
            for (int c = 0; c < 4; c++) {
                const int number = four[4 * t + c] >> shift & mask;
                high[t] += number * q->high[j + c];
                low[t] += number * q->low[j + c];
            }
    }
    for (int t = 0; t < LANES; t++)
        out[t] = 128 * high[t] + low[t] - q->offset;
}

static void page_anywhere(const struct query *q, const struct summary *s, long wide, int bits, const struct rule *rule,
                          float *lower, float *upper)
{
    const float product = centre_product(q, s, wide), slip = q->slip * s->reach;
    float bounds[LONGEST], top = -INFINITY, worst = 0, largest = 0, sum = 0;
    for (long first = 0; first < s->count; first += LANES) {
        int32_t products[LANES];
        sixteen(q, s->numbers + first * wide * bits / 8, wide, bits, products);
        for (long t = first; t < first + LANES && t < s->count; t++) {
            const float scale = widened(s->scale[t]), left = q->norm * widened(s->error[t]), half = q->half_sum * scale;
            const float error = (left < half ? left : half) + q->unresolved * scale + slip;
            const float score = (float)products[t - first] * (q->step * scale) + product;
            const float most = rule->scaling * (score + error);
            bounds[t] = bounded(most, rule);
            top = fmaxf(top, bounds[t]);
            worst = fmaxf(worst, rule->scaling * error);
            largest = fmaxf(largest, fabsf(bounds[t]));
            if (!isfinite(most)) /* a softcap would hide it */
                worst = INFINITY;
        }
    }
    for (long t = 0; t < s->count; t++)
        sum += expf(bounds[t] - top);
    conclude(top, sum, worst, largest, rule, lower, upper);
}

/* ---- AVX512 with products of bytes ---- */

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

/* To a relative error of 2e-7; exp(-inf) is 0. */
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

/* Four numbers of a query, for each of the lanes. */
WIDE_INLINE __m512i four(const int8_t *numbers)
{
    int32_t together;
    memcpy(&together, numbers, 4);
    return _mm512_set1_epi32(together);
}

/* products[t] = those of query t's numbers with those of 16 tokens. */
WIDE_INLINE void sixteen_wide(const int queries, const int bits, const struct query *q, const uint8_t *numbers,
                              long wide, __m512i products[MOST])
{
    const int other = queries <= MOST / 2; /* few queries have sums of their own for every second step: none waits */
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
    for (long j = 0; j < wide; j += LANES) { /* behind the last column a query has zeros, and a summary other numbers */
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

WIDE static void few_wide(int queries, int bits, const struct query *q, const struct summary *s, long wide,
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

static void few_wide(int queries, int bits, const struct query *q, const struct summary *s, long wide,
                     const struct rule *rule, float *lower, float *upper, long apart)
{
    (void)queries, (void)bits, (void)q, (void)s, (void)wide, (void)rule, (void)lower, (void)upper, (void)apart;
}

#endif

/* lower and upper [heads, rows, count]: bounds of the logarithm of the sum of exp(score) over the tokens of each of
   `count` pages, whose summaries lie `stride` bytes apart. query [heads, rows, dim]; `room` has penstock_bounds_room
   bytes; dim at most 512, tokens at most 256. `wide` asks for the kernel that penstock_bounds_wide speaks of. */
void penstock_bounds(const uint8_t *summaries, long stride, long count, const float *query, long heads, long rows,
                     long tokens, long dim, int bits, float scaling, float softcap, float rounding, void *room,
                     float *lower, float *upper, int wide_kernel, int threads)
{
    const long wide = wide_of(dim), bytes = head_bytes(tokens, wide, bits), shares = (count + PAGES - 1) / PAGES;
    const struct rule rule = {scaling, softcap, rounding};
    struct query *queries = room;
    for (long row = 0; row < heads * rows; row++)
        prepare(queries + row, query + row * dim, dim, wide, bits);
#pragma omp parallel for schedule(guided) num_threads(threads) if (threads > 1)
    for (long share = 0; share < heads * shares; share++) {
        const long head = share / shares, first = share % shares * PAGES;
        const struct query *own = queries + head * rows;
        for (long page = first; page < first + PAGES && page < count; page++) {
            const struct summary s = summary_of(summaries + page * stride + head * bytes, tokens, wide);
            for (long row = 0; row < rows; row += MOST) {
                const long few = rows - row < MOST ? rows - row : MOST, at = (head * rows + row) * count + page;
                if (s.count > 0 && wide_kernel) {
                    few_wide((int)few, bits, own + row, &s, wide, &rule, lower + at, upper + at, count);
                    continue;
                }
                for (long i = 0; i < few; i++)
                    if (s.count > 0)
                        page_anywhere(own + row + i, &s, wide, bits, &rule, lower + at + i * count,
                                      upper + at + i * count);
                    else
                        unknown(lower + at + i * count, upper + at + i * count);
            }
        }
    }
}

long penstock_bounds_room(void) { return sizeof(struct query); }
