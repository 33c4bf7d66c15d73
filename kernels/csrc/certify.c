/* The next pages that certified attention reads: Masses of kernels/kv/certify.py, without a sort of all pages.

   For each row of queries and each page, `upper` is an upper bound of the page's part of the softmax, as a share of
   exp of the row's unit. left[page] tells whether the page is unread. read[row] is the sum of the pages that were
   read. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t whole_numbers __attribute__((vector_size(4 * LANES)));

INLINE void keep_greater(floats *most, floats x)
{
    const whole_numbers is = x > *most;
    *most = (floats)(((whole_numbers)x & is) | ((whole_numbers)*most & ~is));
}

/* sum + exp(x), to a relative error of 2e-7; exp(x) is 0 below -87. */
INLINE void add_power(floats *sum, floats x)
{
    const whole_numbers in = x >= -87.0f; /* all bits set if true; false for NaN */
    const floats inside = (floats)((whole_numbers)x & in);
    const floats whole = (inside * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounded to the nearest */
    const floats r = (inside - whole * 0.693145752f) - whole * 1.42860677e-6f;
    floats p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1;
    p = p * r + 1;
    const whole_numbers scale = (__builtin_convertvector(whole, whole_numbers) + 127) << 23;
    const floats power = (floats)((whole_numbers)(p * (floats)scale) & in);
    const whole_numbers strange = x != x;
    *sum += power + (floats)((whole_numbers)x & strange);
}

/* The logarithm of the sum of exp(score) over `there` tokens. */
INLINE float log_mass(const float *scores, long there)
{
    floats lanes = {0}, greatest = lanes - INFINITY, last;
    long t = 0;
    for (; t + LANES <= there; t += LANES)
        keep_greater(&greatest, *(const floats *)(scores + t));
    for (long lane = 0; lane < LANES; lane++)
        last[lane] = t + lane < there ? scores[t + lane] : -INFINITY;
    keep_greater(&greatest, last);
    float most = -INFINITY;
    for (long lane = 0; lane < LANES; lane++)
        most = greatest[lane] > most ? greatest[lane] : most;
    if (most == -INFINITY) /* NaN is added unchanged */
        most = 0;
    for (t = 0; t + LANES <= there; t += LANES)
        add_power(&lanes, *(const floats *)(scores + t) - most);
    add_power(&lanes, last - most);
    float sum = 0;
    for (long lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    return most + logf(sum);
}

INLINE void page_masses(const float *scores, long rows, long stride, long pages, long tokens, long missing, float *logs)
{
    for (long row = 0; row < rows; row++)
        for (long page = 0; page < pages; page++)
            logs[row * pages + page] =
                log_mass(scores + row * stride + page * tokens, page + 1 < pages ? tokens : tokens - missing);
}

static void page_masses_anywhere(const float *scores, long rows, long stride, long pages, long tokens, long missing,
                                 float *logs)
{
    page_masses(scores, rows, stride, pages, tokens, missing, logs);
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void page_masses_wide(const float *scores, long rows, long stride, long pages,
                                                                long tokens, long missing, float *logs)
{
    page_masses(scores, rows, stride, pages, tokens, missing, logs);
}

static int wide(void) { return __builtin_cpu_supports("avx512f"); }
#else
#define page_masses_wide page_masses_anywhere

static int wide(void) { return 0; }
#endif

/* logs [rows, pages]: the logarithm of the sum of exp(score) over each page's tokens. scores [rows, pages * tokens]
   has rows `stride` apart, without the last `missing` columns.
   Takes: scores of pages * tokens - missing columns, with any bits. Refuses nothing: certify.py made them. */
void penstock_page_masses(const float *scores, long rows, long stride, long pages, long tokens, long missing, float *logs)
{
    (wide() ? page_masses_wide : page_masses_anywhere)(scores, rows, stride, pages, tokens, missing, logs);
}

/* upper [rows, count] from its logarithms. The unit of a row is the greatest finite one, or 0.
   Takes: rows * count numbers in each array, with any bits. Refuses nothing. */
void penstock_shares(const float *logs, long rows, long count, double *unit, double *upper, int threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long row = 0; row < rows; row++) {
        const long first = row * count;
        double most = -INFINITY;
        for (long i = first; i < first + count; i++)
            if (isfinite(logs[i]) && logs[i] > most)
                most = logs[i];
        unit[row] = isfinite(most) ? most : 0;
        for (long i = first; i < first + count; i++)
            upper[i] = exp(logs[i] - unit[row]);
    }
}

/* omitted [rows]: the largest share of the whole softmax that unread pages can have.
   Takes: rows * count numbers in `upper`, with any bits. Refuses nothing. */
void penstock_omitted(const double *upper, const uint8_t *left, long rows, long count, const double *read,
                      double *omitted)
{
    const int any = memchr(left, 1, count) != NULL;
    for (long row = 0; row < rows; row++) {
        double unread = 0;
        for (long page = 0; page < count; page++)
            unread += left[page] ? upper[row * count + page] : 0;
        const double share = unread / (unread + read[row]);
        /* No tokens, or masses that are NaN or infinite: an infinite one can hide anything. */
        const int known = isfinite(read[row]) && read[row] > 0 && !isnan(share);
        omitted[row] = !any ? 0 : known ? share : 1;
    }
}

static int before(const double *upper, int32_t a, int32_t b)
{
    return upper[a] > upper[b] || (upper[a] == upper[b] && a < b);
}

static void swap(int32_t *a, int32_t *b)
{
    const int32_t kept = *a;
    *a = *b, *b = kept;
}

/* Partitions order[low .. high - 1] around one page, and returns its new place. */
static long split(const double *upper, int32_t *order, long low, long high)
{
    const long last = high - 1;
    swap(order + (low + last) / 2, order + last);
    long place = low;
    for (long i = low; i < last; i++)
        if (before(upper, order[i], order[last]))
            swap(order + i, order + place++);
    swap(order + place, order + last);
    return place;
}

/* The least that a page adds to the known sum when it is read, from the logarithm of its lower bound, or of its
   upper bound if there is none. */
static double own(const double *upper, const float *lower, double unit, int32_t page)
{
    const double mass = lower ? exp(lower[page] - unit) : upper[page];
    return isfinite(mass) ? mass : 0;
}

/* The number of pages of `order`, those with the greatest bounds, that suffice. They are moved to the front. */
static long enough(const double *upper, const float *lower, double unit, int32_t *order, long count, double read,
                   double epsilon)
{
    long low = 0, high = count; /* least and most number of pages */
    double unread = 0;          /* sum over pages from `high` on, smallest first, so that none is lost */
    while (low < high) {
        const long middle = split(upper, order, low, high);
        double more_unread = 0, known = read;
        for (long i = middle; i < high; i++)
            more_unread += upper[order[i]];
        for (long i = low; i < middle; i++)
            known += own(upper, lower, unit, order[i]);
        if (isfinite(known) && known > 0 && (unread + more_unread) * (1 - epsilon) <= known * epsilon) {
            high = middle;
            unread += more_unread;
        } else {
            read = known + own(upper, lower, unit, order[middle]);
            low = middle + 1;
        }
    }
    return low;
}

/* wanted [count] becomes 1 for pages without which more than `epsilon` of some row would be omitted. Pages are read
   in the order of `upper`, and have at least `lower` (logarithms), or `upper` if that is NULL. room is [rows,
   count].
   Takes: rows * count numbers in `upper`, `lower` and `room`, with any bits. Refuses nothing. */
void penstock_needed(const double *upper, const float *lower, const double *unit, const uint8_t *left, long rows,
                     long count, const double *read, double epsilon, int32_t *room, uint8_t *wanted, int threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long row = 0; row < rows; row++) {
        int32_t *order = room + row * count;
        long there = 0;
        for (long page = 0; page < count; page++)
            if (left[page])
                order[there++] = (int32_t)page;
        const float *least = lower ? lower + row * count : NULL;
        const long first = enough(upper + row * count, least, unit[row], order, there, read[row], epsilon);
        if (first < count)
            order[first] = -1; /* the end */
    }
    memset(wanted, 0, count);
    for (long row = 0; row < rows; row++)
        for (long i = 0; i < count && room[row * count + i] >= 0; i++)
            wanted[room[row * count + i]] = 1;
}
