/* Bounds of attention scores: definitions for the plain and the AVX-512 kernels. bounds.c describes a summary's
   layout. */

#ifndef PENSTOCK_BOUNDS_H
#define PENSTOCK_BOUNDS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16    /* tokens at a time */
#define MOST 8      /* queries in one pass over a page */
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
    int32_t offset;     /* what the stored numbers' offset adds to the product */
    float step;         /* step of the numbers high * 128 + low */
    float norm;         /* weight of a token's error */
    float half_sum;     /* weight of its scale, if that is less */
    float unresolved;   /* weight of its scale for the rounding of the query */
    float slip;         /* weight of its page's reach, for roundings */
};

struct rule { /* from a product to a score */
    float scaling, softcap, rounding; /* softcap 0: none */
};

static inline float widened(uint16_t number)
{
    const union { uint32_t bits; float number; } wide = {(uint32_t)number << 16};
    return wide.number;
}

static inline float bounded(float bound, const struct rule *rule)
{
    if (rule->softcap > 0)
        bound = rule->softcap * (tanhf(bound / rule->softcap) + 1e-6f);
    return bound + rule->rounding * fabsf(bound);
}

static inline void unknown(float *lower, float *upper) { *lower = -INFINITY, *upper = INFINITY; }

/* Bounds of the logarithm of a sum, from the greatest bound of a token, the sum of exp(bound - greatest), the
   greatest error and the greatest absolute bound. */
static inline void conclude(float top, float sum, float worst, float largest, const struct rule *rule, float *lower,
                     float *upper)
{
    const float bound = top + logf(sum), slack = 1e-5f + 4 * ULP * fabsf(bound);
    *upper = bound + slack;
    *lower = bound - slack - (2 + 2 * rule->rounding) * worst - 2 * rule->rounding * largest;
    if (rule->softcap > 0)
        *lower -= 4e-6f * rule->softcap;
    if (!isfinite(*upper) || !isfinite(*lower)) /* after an overflow anything is possible */
        unknown(lower, upper);
}

/* Bounds of one page for 1 to MOST queries at once, to lower and upper, with `apart` numbers between queries. Only
   where penstock_bounds_wide() is true. */
void penstock_bounds_page_wide(int queries, int bits, const struct query *q, const struct summary *s, long wide,
                               const struct rule *rule, float *lower, float *upper, long apart);

int penstock_bounds_wide(void);

#endif
