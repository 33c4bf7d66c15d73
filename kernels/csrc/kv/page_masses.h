/* Logarithms of the masses of pages, for sum_page_masses of kernels/kv/certify.py. */

#include "../vectors/exponential.h"
#include "../vectors/inputs.h"

/* The logarithm of the sum of exp(score) over `there` tokens. */
INLINE float log_mass(const float *scores, long there)
{
    const floats none = f_all(-INFINITY);
    floats greatest = none, lanes = f_all(0), last = none;
    long t = 0;
    for (; t + LANES <= there; t += LANES)
        greatest = f_max(f_load(scores + t), greatest);
    if (t < there) {
        float some[LANES];
        f_store(some, none);
        memcpy(some, scores + t, 4 * (size_t)(there - t));
        last = f_load(some);
        greatest = f_max(last, greatest);
    }
    float most = f_most(greatest);
    if (most == -INFINITY) /* NaN is added unchanged */
        most = 0;
    for (t = 0; t + LANES <= there; t += LANES)
        lanes = f_add(lanes, f_exp(f_sub(f_load(scores + t), f_all(most))));
    if (t < there)
        lanes = f_add(lanes, f_exp(f_sub(last, f_all(most))));
    return most + logf(f_sum(lanes));
}

/* logs [rows, pages]: the logarithm of the sum of exp(score) over each page's tokens. scores [rows, pages * tokens]
   has rows `stride` apart, without the last `missing` columns.
   Takes: scores of pages * tokens - missing columns, with any bits. Refuses nothing: certify.py made them. */
void EXPORT(page_masses)(const float *scores, long rows, long stride, long pages, long tokens, long missing, float *logs)
{
    for (long row = 0; row < rows; row++)
        for (long page = 0; page < pages; page++)
            logs[row * pages + page] =
                log_mass(scores + row * stride + page * tokens, page + 1 < pages ? tokens : tokens - missing);
}
