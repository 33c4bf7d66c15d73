/* Numbers divided by the root of the mean of their squares, times a weight, rounded where torch's operations round.

   torch sums by vectors of eight, whatever its level, four at a time, in four levels: after sixteen steps or more a level
   is added to the next one. The four sums are added in turn, then their lanes, after the numbers that fill no vector. */

#include "../bfloat16.h"
#include "../vectors/vectors.h"

#define LEVELS 4
#define TORCHS 8       /* lanes of torch's vectors */
#define WIDE (4 * TORCHS)
#define SUMS (WIDE / LANES)

INLINE floats f_load_either(const void *from, long at, long count, const int brief)
{
    return brief ? f_load_some_brief((const uint16_t *)from + at, count) : f_load_some((const float *)from + at, count);
}

INLINE void f_store_either(void *to, long at, floats a, long count, const int brief)
{
    if (brief)
        f_store_brief((uint16_t *)to + at, a, count);
    else
        f_store_some((float *)to + at, a, count);
}

INLINE floats squared(floats a) { return f_mul(a, a); }

/* Adds the squares of WIDE numbers to sums of one level. */
INLINE void add_squares(floats *sums, const void *x, long at, const int brief)
{
#pragma GCC unroll 4
    for (int i = 0; i < SUMS; i++)
        sums[i] = f_add(sums[i], squared(f_load_either(x, at + i * LANES, LANES, brief)));
}

/* Adds each level that is full to the next one, after `step` steps. */
INLINE void carry_sums(floats sums[LEVELS][SUMS], long step, int power)
{
    for (int l = 1; l < LEVELS; l++) {
        for (int i = 0; i < SUMS; i++) {
            sums[l][i] = f_add(sums[l][i], sums[l - 1][i]);
            sums[l - 1][i] = f_all(0);
        }
        if (step & ((1L << power) - 1) << l * power)
            break;
    }
}

INLINE float sum_of_squares(const void *x, long n, const int brief)
{
    const long steps = n / WIDE;
    floats sums[LEVELS][SUMS];
    for (int l = 0; l < LEVELS; l++)
        for (int i = 0; i < SUMS; i++)
            sums[l][i] = f_all(0);
    int power = 0;
    while (1L << power < steps)
        power++;
    power = power / LEVELS > 4 ? power / LEVELS : 4;
    for (long step = 1; step <= steps; step++) {
        add_squares(sums[0], x, (step - 1) * WIDE, brief);
        if (!(step & ((1L << power) - 1)))
            carry_sums(sums, step, power);
    }
    for (int l = 1; l < LEVELS; l++)
        for (int i = 0; i < SUMS; i++)
            sums[0][i] = f_add(sums[0][i], sums[l][i]);
    long at = steps * WIDE;
    for (; at + TORCHS <= n; at += TORCHS)
        sums[0][0] = f_add(sums[0][0], squared(f_load_either(x, at, TORCHS, brief)));
    float parts[WIDE], total = 0;
    for (int i = 0; i < SUMS; i++)
        f_store(parts + i * LANES, sums[0][i]);
    for (; at < n; at++) {
        const float number = brief ? widened(((const uint16_t *)x)[at]) : ((const float *)x)[at];
        total += number * number;
    }
    for (int i = 0; i < TORCHS; i++)
        total += ((parts[i] + parts[TORCHS + i]) + parts[2 * TORCHS + i]) + parts[3 * TORCHS + i];
    return total;
}

INLINE void norm_row(const void *x, const void *weight, void *out, long n, float eps, const int form,
                     const int brief)
{
    const floats factor = f_all(1 / sqrtf(sum_of_squares(x, n, brief) / (float)n + eps));
    for (long at = 0; at < n; at += LANES) {
        const long count = n - at < LANES ? n - at : LANES;
        const floats by = f_load_either(weight, at, count, brief);
        const floats normed = f_mul(f_load_either(x, at, count, brief), factor);
        if (form == 0)
            f_store_either(out, at, f_mul(by, brief ? w_bits(f_brief(normed)) : normed), count, brief);
        else if (form == 1)
            f_store_either(out, at, f_mul(normed, f_add(f_all(1), by)), count, brief);
        else
            f_store_either(out, at, f_mul(by, normed), count, brief);
    }
}

/* out [rows, n] of x [rows, n] and weight [n], all bfloat16 or, if not `brief`, float32. `form` is 0: the weight times
   what is rounded before; 1: one plus the weight, times; 2: the weight, times.
   Takes: any bits. Refuses nothing: kernels/modules/rms_norm.py calls it so. */
void EXPORT(rms_norm)(const void *x, const void *weight, void *out, long rows, long n, float eps, int form, int brief)
{
    for (long row = 0; row < rows; row++) {
        const long at = row * n * (brief ? 2 : 4);
        if (brief)
            norm_row((const char *)x + at, weight, (char *)out + at, n, eps, form, 1);
        else
            norm_row((const char *)x + at, weight, (char *)out + at, n, eps, form, 0);
    }
}

#undef LEVELS
#undef TORCHS
#undef WIDE
#undef SUMS
