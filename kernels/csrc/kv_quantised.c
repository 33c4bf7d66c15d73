/* Attention to quantised pages of keys and values as stored, and decoding of them.

   A plane is a row of strips, those of each head side by side. A strip is a matrix [inner, width] of numbers of 8 or
   4 bits, then a scale and a zero for each of its rows, in bfloat16. A number stands for (number - offset) * scale +
   zero. A row of keys has up to 32 tokens, and `inner` counts channels. A row of values has up to 32 channels, and
   `inner` counts tokens. So both products are the same: rows of a strip times a factor each, summed in registers
   that hold a whole row. Scales are multiplied into the factors, and the zeros give one number that is added at the
   end. With 4 bits, a byte holds number j and number j + width / 2. Reads of rows with fewer than 32 numbers go past
   their end, but not past the plane's.

   No bit depends on the number of threads: scores are divided by strips, values by strips of all pages in their
   order. */

#include <string.h>

#include "bfloat16.h"
#include "target.h"

#define WIDEST 32 /* the most numbers in a row of a strip */
#define LINE 64   /* bytes of a cache line */

/* A scale or a zero. Rows of an odd number of bytes leave them at odd addresses. */
typedef uint16_t loose __attribute__((aligned(1), may_alias));

struct layout { /* a plane: bits of a number; channels or tokens along all strips of a head; strips */
    long bits, along, strips; /* `strips` of a head */
    long inner, width, half;  /* `half`: the first number of a row in the second half of the registers */
    long row, size;           /* bytes of a row, and of a strip */
};

struct inputs { /* queries or probabilities, [.., stride], bfloat16 (brief) or float32 */
    const void *numbers;
    long stride;
    int brief;
};

struct scoring {
    struct inputs query; /* [heads * rows, dim] */
    long rows;           /* for each head of the keys */
    float scaling;
    float *out; /* [heads * rows, total] */
    long total;
};

struct weighing {
    struct inputs probabilities; /* [heads * rows, total] */
    long rows;                   /* for each head of the values */
    float *out;                  /* [heads * rows, dim] */
};

static inline long smaller(long a, long b) { return a < b ? a : b; }

static inline float offset_of(struct layout layout) { return layout.bits == 4 ? 8 : 0; }

static struct layout layout_of(long tokens, long dim, long bits, int of_keys)
{
    const long along = of_keys ? tokens : dim, inner = of_keys ? dim : tokens;
    const long strips = (along + WIDEST - 1) / WIDEST, share = (along + strips - 1) / strips;
    const long width = share + share % 2, row = width * bits / 8, half = bits == 4 ? width / 2 : WIDEST / 2;
    return (struct layout){bits, along, strips, inner, width, half, row, inner * (row + 4)};
}

/* ---- processors ---- */

#define LANES 4
#define MOST 1
#define NAME(x) x##_narrow
typedef float Floats_narrow __attribute__((vector_size(16)));
typedef int32_t Words_narrow __attribute__((vector_size(16)));
static inline Words_narrow words_narrow(const uint8_t *from) { return (Words_narrow){from[0], from[1], from[2], from[3]}; }
#include "strips.h"
#undef LANES
#undef MOST
#undef NAME

#if defined(__x86_64__) && defined(__GNUC__)
#define PENSTOCK_X86
#include <immintrin.h>

#ifdef __clang__ /* clang passes whole registers where vectors are that wide */
#define WHOLE_REGISTERS "avx512f,avx512bw,avx512vl,avx512dq"
#else
#define WHOLE_REGISTERS "avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512"
#endif

BEGIN_TARGET("avx2,fma")
#define LANES 8
#define MOST 2
#define NAME(x) x##_middle
typedef float Floats_middle __attribute__((vector_size(32)));
typedef int32_t Words_middle __attribute__((vector_size(32)));
static inline Words_middle words_middle(const uint8_t *from)
{
    return (Words_middle)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
}
#include "strips.h"
#undef LANES
#undef MOST
#undef NAME
END_TARGET

BEGIN_TARGET(WHOLE_REGISTERS)
#define LANES 16
#define MOST 8
#define NAME(x) x##_wide
typedef float Floats_wide __attribute__((vector_size(64)));
typedef int32_t Words_wide __attribute__((vector_size(64)));
static inline Words_wide words_wide(const uint8_t *from)
{
    return (Words_wide)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
}
#include "strips.h"
#undef LANES
#undef MOST
#undef NAME
END_TARGET
#endif

static const struct {
    void (*score)(struct scoring, struct layout, const uint8_t *, long, long);
    void (*weigh)(struct weighing, struct layout, const uint8_t *, long, long, long);
    void (*decode)(struct layout, const uint8_t *, float *);
} levels[] = {
    {score_narrow, weigh_narrow, decode_narrow},
#ifdef PENSTOCK_X86
    {score_middle, weigh_middle, decode_middle},
    {score_wide, weigh_wide, decode_wide},
#endif
};

/* The highest level of this processor. */
int penstock_kv_level(void)
{
#ifdef PENSTOCK_X86
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return 1;
#endif
    return 0;
}

/* ---- calls ---- */

/* out [heads * rows, total], from column `at` to the last token or column: query [heads * rows, dim] times the keys
   [heads, tokens, dim] in each of `count` planes, times scaling. Both are rounded to bfloat16 if it is `brief`.
   Takes: pages as long as key_bytes, with any bytes. Refuses nothing: quantised.py calls it where tokens
   and dim are at most 4096, for which there is room on the stack. */
void penstock_kv_scores(long count, const uint64_t *planes, long heads, long tokens, long dim, long bits,
                        const void *query, long rows, int brief, float scaling, float *out, long total, long at,
                        int level, int threads)
{
    const struct layout layout = layout_of(tokens, dim, bits, 1);
    const struct scoring s = {{query, dim, brief}, rows, scaling, out, total};
    const long strips = heads * layout.strips;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long number = 0; number < count * strips; number++) {
        const long page = number / strips, strip = number % strips;
        const long token = at + page * tokens + strip % layout.strips * layout.width;
        if (token < total)
            levels[level].score(s, layout, (const uint8_t *)planes[page] + strip * layout.size, strip / layout.strips,
                                token);
    }
}

/* Adds to out [heads * rows, dim] the probabilities [heads * rows, total], from column `at` to the last token or column,
   times the values [heads, tokens, dim] in each of `count` planes.
   Takes: pages as long as value_bytes, with any bytes. Refuses nothing, as above. */
void penstock_kv_weigh(long count, const uint64_t *planes, long heads, long tokens, long dim, long bits,
                       const void *probabilities, long rows, int brief, float *out, long total, long at, int level,
                       int threads)
{
    const struct layout layout = layout_of(tokens, dim, bits, 0);
    const struct weighing w = {{probabilities, total, brief}, rows, out};
    const long strips = heads * layout.strips;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long part = 0; part < threads; part++)
        for (long page = 0; page < count && at + page * tokens < total; page++)
            for (long strip = strips * part / threads; strip < strips * (part + 1) / threads; strip++)
                levels[level].weigh(w, layout, (const uint8_t *)planes[page] + strip * layout.size,
                                    strip / layout.strips, strip % layout.strips * layout.width, at + page * tokens);
}

/* out [heads, tokens, dim], bfloat16 (brief) or float32.
   Takes: a page as long as key_bytes or value_bytes, with any bytes. Refuses nothing, as above. */
void penstock_kv_decode(const void *plane, long heads, long tokens, long dim, long bits, int of_keys, void *out,
                        int brief, int level, int threads)
{
    const struct layout layout = layout_of(tokens, dim, bits, of_keys);
    /* Steps from one number of a row to the next, and from one row to the next. */
    const long step = of_keys ? dim : 1, stride = of_keys ? 1 : dim;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long number = 0; number < heads * layout.strips; number++) {
        float numbers[layout.inner * WIDEST];
        levels[level].decode(layout, (const uint8_t *)plane + number * layout.size, numbers);
        const long first = number % layout.strips * layout.width, there = smaller(layout.along - first, layout.width);
        const long to = number / layout.strips * tokens * dim + first * step;
        for (long i = 0; i < layout.inner; i++)
            for (long j = 0; j < there; j++) {
                const float value = numbers[i * WIDEST + j];
                if (brief)
                    ((uint16_t *)out)[to + i * stride + j * step] = rounded(value);
                else
                    ((float *)out)[to + i * stride + j * step] = value;
            }
    }
}
