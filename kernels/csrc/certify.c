/* The next pages that certified attention reads: Masses of kernels/kv/certify.py, without a sort of all pages.

   For each row of queries and each page, `upper` is an upper bound of the page's part of the softmax, as a share of
   exp of the row's unit. left[page] tells whether the page is unread. read[row] is the sum of the pages that were
   read. */

#include <math.h>
#include <stdint.h>
#include <string.h>

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
