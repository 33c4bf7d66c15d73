/* Summaries and queries of bounds.h, and what follows from the bounds of all tokens. */

#include "../vectors/inputs.h"

#define BOUND_COLUMNS 512   /* the most: sums of products then fit 32 bits */
#define BOUND_TOKENS 256    /* the most of a page */
#define BOUND_PAGES 8       /* pages that a thread takes at a time */
#define BOUND_STEPS 16256   /* the greatest number of a query: 127 * 128 */
#define HALF_ULP 5.9604645e-8f /* half a unit in the last place of 1 */

/* Queries in one pass over a page: half of the registers hold two sums for each. */
#define BOUND_QUERIES (REGISTERS / (4 * PARTS))
#if BOUND_QUERIES == 8
#define BOUND_CASES(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#elif BOUND_QUERIES == 2
#define BOUND_CASES(CASE) CASE(1) CASE(2)
#else
#define BOUND_CASES(CASE) CASE(1)
#endif

struct summary {
    int32_t count;
    float reach;
    const uint16_t *centre, *scale, *error;
    const uint8_t *numbers;
};

/* Its numbers of 15 bits are 128 * high + low where bytes are multiplied, else those of even and odd columns. */
struct bound_query {
    float plain[BOUND_COLUMNS];
#ifdef HAS_BYTE_PRODUCTS
    int8_t high[BOUND_COLUMNS], low[BOUND_COLUMNS];
#else
    int16_t even[BOUND_COLUMNS / 2], odd[BOUND_COLUMNS / 2];
#endif
    int32_t offset;     /* what the stored numbers' offset adds to the product */
    float step;         /* of its numbers */
    float norm;         /* weight of a token's error */
    float half_sum;     /* weight of its scale, if that is less */
    float unresolved;   /* weight of its scale for the rounding of the query */
    float slip;         /* weight of its page's reach, for roundings */
};

struct rule { /* from a product to a score */
    float scaling, softcap, rounding; /* softcap 0: none */
};

INLINE long summary_numbers_at(long tokens, long wide) { return (8 + 2 * wide + 4 * tokens + 63) / 64 * 64; }

static long summary_bytes(long tokens, long wide, int bits)
{
    return summary_numbers_at(tokens, wide) + tokens * wide * bits / 8;
}

static struct summary summary_of(const uint8_t *from, long tokens, long wide)
{
    struct summary s = {.centre = (const uint16_t *)(from + 8)};
    memcpy(&s.count, from, 4);
    if (s.count > tokens) /* no summary of such a page */
        s.count = 0;
    memcpy(&s.reach, from + 4, 4);
    s.scale = s.centre + wide;
    s.error = s.scale + tokens;
    s.numbers = from + summary_numbers_at(tokens, wide);
    return s;
}

/* Walsh-Hadamard transforms of the longest blocks of 2^n columns that divide `wide`. Norms are kept. */
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

INLINE void set_number(struct bound_query *q, long j, int number)
{
#ifdef HAS_BYTE_PRODUCTS
    const int high = (number + (number < 0 ? -64 : 64)) / 128;
    q->high[j] = (int8_t)high;
    q->low[j] = (int8_t)(number - 128 * high);
#else
    (j % 2 ? q->odd : q->even)[j / 2] = (int16_t)number;
#endif
}

static void prepare_query(struct bound_query *q, const float *from, long dim, long wide, int bits)
{
    float rotated[BOUND_COLUMNS];
    memset(q, 0, sizeof *q);
    memcpy(q->plain, from, sizeof(float) * (size_t)dim);
    memcpy(rotated, q->plain, sizeof(float) * (size_t)wide);
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
    q->slip = q->norm * HALF_ULP * (4 * wide + 64);
    if (most > 1e-30f) {
        q->step = most / BOUND_STEPS;
        q->unresolved = q->step * 0.502f * levels * wide;
    } else
        q->unresolved = most * levels * wide; /* too small to be resolved */
    int32_t total = 0;
    for (long j = 0; j < wide && most > 1e-30f; j++) {
        const int number = (int)rintf(fmaxf(-BOUND_STEPS, fminf(BOUND_STEPS, rotated[j] / q->step)));
        set_number(q, j, number);
        total += number;
    }
    q->offset = (levels + 1) * total;
}

INLINE void unknown(float *lower, float *upper) { *lower = -INFINITY, *upper = INFINITY; }

/* Bounds of the logarithm of a sum, from the greatest bound of a token, the sum of exp(bound - greatest), the
   greatest error and the greatest absolute bound. */
INLINE void conclude(float top, float sum, float worst, float largest, const struct rule *rule, float *lower, float *upper)
{
    const float bound = top + logf(sum), slack = 1e-5f + 4 * HALF_ULP * fabsf(bound);
    *upper = bound + slack;
    *lower = bound - slack - (2 + 2 * rule->rounding) * worst - 2 * rule->rounding * largest;
    if (rule->softcap > 0)
        *lower -= 4e-6f * rule->softcap;
    if (!isfinite(*upper) || !isfinite(*lower)) /* after an overflow anything is possible */
        unknown(lower, upper);
}
