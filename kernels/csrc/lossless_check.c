/* Check of tiles of the lossless format, before anything decodes them: formats/lossless.h describes the layout. What passes
   can be decoded and multiplied without an error. Reads the codes, a fifth of the bytes. */

#include "lossless.h"
#include "target.h"

#define ALWAYS static inline __attribute__((always_inline))
#define LINE 256                 /* codes in a cache line */
#define EVEN 0x5555555555555555u /* the lower bit of each code of a word */

struct tiles {
    const uint8_t *from;   /* bytes `start` to `stop` of a matrix */
    uint64_t start, stop;
    const uint8_t *ends;   /* uint64 [count], in bytes from the start of the matrix */
    long count;
    uint64_t k;
};

/* The number of codes of two bits that are not 0 in `lines` lines at `from`. */
typedef uint64_t counter(const uint8_t *from, uint64_t lines, uint64_t ahead);

ALWAYS uint64_t in_words(const uint8_t *from, uint64_t lines, uint64_t ahead)
{
    uint64_t found = 0, word;
    for (uint64_t line = 0; line < lines; line++, from += LINE / 4) {
        __builtin_prefetch(from + ahead);
        for (int i = 0; i < LINE / 4; i += 8) {
            memcpy(&word, from + i, 8);
            found += (uint64_t)__builtin_popcountll((word | word >> 1) & EVEN);
        }
    }
    return found;
}

/* The number of codes that are 0 among the first `codes` at `from`. The same place `ahead` bytes later is prefetched:
   codes of a tile are a short run, at which the processor's own prefetch starts anew. */
ALWAYS uint64_t zeros(counter *count, const uint8_t *from, uint64_t codes, uint64_t ahead)
{
    const uint64_t lines = codes / LINE, left = codes % LINE;
    uint8_t last[LINE / 4] = {0};
    memcpy(last, from + lines * (LINE / 4), (size_t)quarter(left));
    if (left % 4)
        last[left / 4] &= (uint8_t)((1 << 2 * (left % 4)) - 1);
    return codes - count(from, lines, ahead) - count(last, 1, 0);
}

/* Whether `bytes` at `from` are a tile of `k` columns: each level holds exactly what the one before leaves to it. */
ALWAYS int whole(counter *count, const uint8_t *from, uint64_t bytes, uint64_t k)
{
    const uint64_t numbers = CODED_ROWS * k, fixed = CODED_HEAD + numbers / 4 + numbers;
    uint32_t counts[2];
    if (bytes == 2 * numbers)
        return 1;
    if (bytes < fixed || bytes > 2 * numbers)
        return 0;
    memcpy(counts, from + 4 * CODED_LEVELS, sizeof counts);
    const uint64_t escapes = bytes - fixed, first = quarter(counts[0]), second = quarter(counts[1]);
    if (escapes < first + second)
        return 0;
    const uint8_t *levels = from + CODED_HEAD;
    return zeros(count, levels + escapes, numbers, bytes) == counts[0] &&
           zeros(count, levels, counts[0], bytes) == counts[1] &&
           zeros(count, levels + first, counts[1], bytes) == escapes - first - second;
}

ALWAYS int first_damaged(counter *count, const struct tiles *in)
{
    uint64_t at = in->start, end;
    for (int i = 0; i < in->count; i++, at = end) {
        memcpy(&end, in->ends + 8 * (long)i, 8);
        if (end < at || end > in->stop || !whole(count, in->from + (at - in->start), end - at, in->k))
            return i;
    }
    return -1;
}

static int anywhere(const struct tiles *in) { return first_damaged(in_words, in); }

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

BEGIN_TARGET("popcnt,avx2")
static int middle(const struct tiles *in) { return first_damaged(in_words, in); }
END_TARGET

BEGIN_TARGET("popcnt,avx512f,avx512vpopcntdq")
ALWAYS uint64_t in_registers(const uint8_t *from, uint64_t lines, uint64_t ahead)
{
    const __m512i even = _mm512_set1_epi64((long long)EVEN);
    __m512i found = _mm512_setzero_si512();
    for (uint64_t line = 0; line < lines; line++, from += LINE / 4) {
        __builtin_prefetch(from + ahead);
        const __m512i codes = _mm512_loadu_si512(from);
        const __m512i some = _mm512_and_si512(_mm512_or_si512(codes, _mm512_srli_epi64(codes, 1)), even);
        found = _mm512_add_epi64(found, _mm512_popcnt_epi64(some));
    }
    return (uint64_t)_mm512_reduce_add_epi64(found);
}

static int wide(const struct tiles *in) { return first_damaged(in_registers, in); }
END_TARGET
#endif

/* The first of `count` tiles of `k` columns that is damaged or lies elsewhere, -1 if none is. The first begins at byte
   `start` of the matrix, `ends` has where each ends, and `from` has bytes `start` to `stop` of the matrix. `level` is 0
   for any processor, 1 for AVX2, 2 for AVX-512.
   Takes: stop - start >= 0 bytes and 8 * count bytes, both with any bytes. Refuses every tile outside of them. */
int penstock_lossless_first_damaged(const uint8_t *from, long start, long stop, const uint8_t *ends, long count, long k,
                                    int level)
{
    const struct tiles in = {from, (uint64_t)start, (uint64_t)stop, ends, count, (uint64_t)k};
#if defined(__x86_64__) && defined(__GNUC__)
    if (level == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vpopcntdq"))
        return wide(&in);
    if (level >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt"))
        return middle(&in);
#endif
    (void)level;
    return anywhere(&in);
}
