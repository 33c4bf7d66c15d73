/* Check of tiles of the lossless format, before anything decodes them: lossless.c describes the layout. What passes
   can be decoded and multiplied without an error. Reads the codes, a fifth of the bytes. */

#include "lossless.h"
#include "target.h"

#define EVEN 0x5555555555555555u /* the lower bit of each code of a word */

/* The number of codes of two bits that are 0 among the first `codes` at `from`. */
static inline __attribute__((always_inline)) uint64_t zeros(const uint8_t *from, uint64_t codes)
{
    const uint64_t words = codes / 32, left = codes % 32;
    uint64_t word, others = 0;
    for (uint64_t i = 0; i < words; i++) {
        memcpy(&word, from + 8 * i, 8);
        others += (uint64_t)__builtin_popcountll((word | word >> 1) & EVEN);
    }
    if (left) {
        word = 0;
        memcpy(&word, from + 8 * words, (size_t)quarter(left));
        others += (uint64_t)__builtin_popcountll((word | word >> 1) & EVEN & (((uint64_t)1 << 2 * left) - 1));
    }
    return codes - others;
}

/* Whether `bytes` at `from` are a tile of `k` columns: each level holds exactly what the one before leaves to it. */
static inline __attribute__((always_inline)) int whole(const uint8_t *from, uint64_t bytes, uint64_t k)
{
    const uint64_t numbers = ROWS * k, fixed = HEAD + numbers / 4 + numbers;
    uint32_t counts[2];
    if (bytes == 2 * numbers)
        return 1;
    if (bytes < fixed || bytes > 2 * numbers)
        return 0;
    memcpy(counts, from + 4 * LEVELS, sizeof counts);
    const uint64_t escapes = bytes - fixed, first = quarter(counts[0]), second = quarter(counts[1]);
    if (escapes < first + second)
        return 0;
    const uint8_t *levels = from + HEAD;
    return zeros(levels + escapes, numbers) == counts[0] && zeros(levels, counts[0]) == counts[1] &&
           zeros(levels + first, counts[1]) == escapes - first - second;
}

static inline __attribute__((always_inline)) int first_damaged(const uint8_t *from, const uint64_t *ends, long count,
                                                               uint64_t k)
{
    uint64_t at = 0;
    for (long i = 0; i < count; at = ends[i++])
        if (!whole(from + at, ends[i] - at, k))
            return (int)i;
    return -1;
}

static int anywhere(const uint8_t *from, const uint64_t *ends, long count, uint64_t k)
{
    return first_damaged(from, ends, count, k);
}

#if defined(__x86_64__) && defined(__GNUC__)
BEGIN_TARGET("popcnt,avx2")
static int middle(const uint8_t *from, const uint64_t *ends, long count, uint64_t k)
{
    return first_damaged(from, ends, count, k);
}
END_TARGET

BEGIN_TARGET("popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq")
static int wide(const uint8_t *from, const uint64_t *ends, long count, uint64_t k)
{
    return first_damaged(from, ends, count, k);
}
END_TARGET
#endif

/* The first of `count` tiles of `k` columns that is damaged, -1 if none is. They lie one behind the other from `from`
   on, and end at `ends` from there, which rise. Any bytes may be there. `level` is 0 for any processor, 1 for AVX2, 2
   for AVX-512.
   Takes: tiles of any bytes. Refuses nothing: lossless.py has checked that `ends` rise, and
   what it gives ends with the last. */
int penstock_lossless_first_damaged(const uint8_t *from, const uint64_t *ends, long count, long k, int level)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (level == 2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vpopcntdq"))
        return wide(from, ends, count, (uint64_t)k);
    if (level >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt"))
        return middle(from, ends, count, (uint64_t)k);
#endif
    (void)level;
    return anywhere(from, ends, count, (uint64_t)k);
}
