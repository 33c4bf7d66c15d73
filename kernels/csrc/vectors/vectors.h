/* Sixteen numbers at a time, on any processor: the language in which the kernels are written, once for all levels.

   A level's header (plain.h, avx2.h, avx512.h, neon.h) says how wide a register is and how it does what C's vectors
   cannot say. `floats` and `words` are sixteen numbers in PARTS registers. Nothing here is fused unless it is named
   so: products and sums are rounded one by one, as torch's operations are (the compiler is told so too). */

#ifndef PENSTOCK_VECTORS_H
#define PENSTOCK_VECTORS_H

#include <stdint.h>
#include <string.h>

#define LANES 16
#define PARTS (4 * LANES / WIDTH)
#define WITHIN_PART (WIDTH / 4) /* lanes */
#define INLINE static inline __attribute__((always_inline))
/* Of functions that parallel regions call. Clang compiles what it inlines there for any processor. */
#define APART __attribute__((noinline))

/* DO(part, ...) for each part. Written out, because compilers keep arrays in memory that loops run over. */
#if WIDTH == 64
#define EACH_PART(DO, ...) DO(0, ##__VA_ARGS__)
#elif WIDTH == 32
#define EACH_PART(DO, ...) DO(0, ##__VA_ARGS__) DO(1, ##__VA_ARGS__)
#else
#define EACH_PART(DO, ...) DO(0, ##__VA_ARGS__) DO(1, ##__VA_ARGS__) DO(2, ##__VA_ARGS__) DO(3, ##__VA_ARGS__)
#endif

typedef float float_part __attribute__((vector_size(WIDTH)));
typedef int32_t word_part __attribute__((vector_size(WIDTH)));
typedef uint32_t unsigned_part __attribute__((vector_size(WIDTH)));
typedef uint8_t byte_part __attribute__((vector_size(WIDTH)));

typedef struct { float_part p[PARTS]; } floats; /* float32 */
typedef struct { word_part p[PARTS]; } words;   /* 32 bits each: integers, masks (0 or -1), or pairs of bfloat16 */

/* Memory at any address: not by memcpy, for which compilers take smaller registers. */
typedef float float_part_anywhere __attribute__((vector_size(WIDTH), aligned(1), may_alias));
typedef int32_t word_part_anywhere __attribute__((vector_size(WIDTH), aligned(1), may_alias));

INLINE float_part part_load(const float *from) { return *(const float_part_anywhere *)from; }
INLINE byte_part part_load_bytes(const void *from) { return (byte_part)*(const word_part_anywhere *)from; }
INLINE void part_store_bytes(void *to, byte_part a) { *(word_part_anywhere *)to = (word_part)a; }
INLINE word_part part_load_words(const void *from) { return *(const word_part_anywhere *)from; }

#include LEVEL_HEADER /* part_fma, part_min, ..., w_load_bytes, w_load_halves, w_store_halves, f_lookup, w_transpose */

#define BINARY(TYPE, NAME, OPERATOR)                                                                                   \
    INLINE TYPE NAME(TYPE a, TYPE b)                                                                                   \
    {                                                                                                                  \
        EACH_PART(BINARY_PART, OPERATOR)                                                                               \
        return a;                                                                                                      \
    }
#define BINARY_PART(I, OPERATOR) a.p[I] = a.p[I] OPERATOR b.p[I];

BINARY(floats, f_add, +)
BINARY(floats, f_sub, -)
BINARY(floats, f_mul, *)
BINARY(floats, f_div, /)
BINARY(words, w_and, &)
BINARY(words, w_or, |)
BINARY(words, w_xor, ^)

/* Sums and products of words go round at 2^32: in C only those of unsigned numbers do. */
#define ROUND(NAME, OPERATOR)                                                                                          \
    INLINE words NAME(words a, words b)                                                                                \
    {                                                                                                                  \
        EACH_PART(ROUND_PART, OPERATOR)                                                                                \
        return a;                                                                                                      \
    }
#define ROUND_PART(I, OPERATOR) a.p[I] = (word_part)((unsigned_part)a.p[I] OPERATOR(unsigned_part) b.p[I]);

ROUND(w_add, +)
ROUND(w_sub, -)
ROUND(w_mul, *)

/* A function of the level's header for each part. */
#define BY_PARTS_1(TYPE, NAME, PART)                                                                                   \
    INLINE TYPE NAME(TYPE a)                                                                                           \
    {                                                                                                                  \
        EACH_PART(PART_1, PART)                                                                                        \
        return a;                                                                                                      \
    }
#define BY_PARTS_2(TYPE, NAME, PART)                                                                                   \
    INLINE TYPE NAME(TYPE a, TYPE b)                                                                                   \
    {                                                                                                                  \
        EACH_PART(PART_2, PART)                                                                                        \
        return a;                                                                                                      \
    }
#define PART_1(I, PART) a.p[I] = PART(a.p[I]);
#define PART_2(I, PART) a.p[I] = PART(a.p[I], b.p[I]);

BY_PARTS_2(floats, f_min, part_min) /* of NaN and a number: the second */
BY_PARTS_2(floats, f_max, part_max)
BY_PARTS_1(floats, f_round, part_round) /* to the nearest integer, ties to even */
BY_PARTS_1(floats, f_floor, part_floor)
BY_PARTS_1(floats, f_ceil, part_ceil)

/* a * b + c, rounded once where the processor can. */
INLINE floats f_fma(floats a, floats b, floats c)
{
#define FMA_PART(I) a.p[I] = part_fma(a.p[I], b.p[I], c.p[I]);
    EACH_PART(FMA_PART)
    return a;
}

/* a * b + c, rounded once at every level, so that all give the same bits. */
INLINE floats f_fma_once(floats a, floats b, floats c)
{
#define FMA_ONCE_PART(I) a.p[I] = part_fma_once(a.p[I], b.p[I], c.p[I]);
    EACH_PART(FMA_ONCE_PART)
    return a;
}

INLINE words w_shl(words a, int by)
{
#define SHL_PART(I) a.p[I] = (word_part)((unsigned_part)a.p[I] << by);
    EACH_PART(SHL_PART)
    return a;
}

/* Zeros come in from the left. */
INLINE words w_shr(words a, int by)
{
#define SHR_PART(I) a.p[I] = (word_part)((unsigned_part)a.p[I] >> by);
    EACH_PART(SHR_PART)
    return a;
}

INLINE floats f_all(float number)
{
    floats all;
#define ALL_PART(I) all.p[I] = number - (float_part){0};
    EACH_PART(ALL_PART)
    return all;
}

INLINE words w_all(int32_t number)
{
    words all;
#define W_ALL_PART(I) all.p[I] = number - (word_part){0};
    EACH_PART(W_ALL_PART)
    return all;
}

/* The same bits as another type. */
INLINE words f_bits(floats a)
{
    words bits;
#define BITS_PART(I) bits.p[I] = (word_part)a.p[I];
    EACH_PART(BITS_PART)
    return bits;
}

INLINE floats w_bits(words a)
{
    floats bits;
#define W_BITS_PART(I) bits.p[I] = (float_part)a.p[I];
    EACH_PART(W_BITS_PART)
    return bits;
}

INLINE floats w_to_floats(words a)
{
    floats made;
#define TO_FLOATS_PART(I) made.p[I] = __builtin_convertvector(a.p[I], float_part);
    EACH_PART(TO_FLOATS_PART)
    return made;
}

/* The nearest integers, ties to even, of numbers within 2^31. */
INLINE words f_to_words(floats a)
{
    words made;
#define TO_WORDS_PART(I) made.p[I] = part_to_words(a.p[I]);
    EACH_PART(TO_WORDS_PART)
    return made;
}

#define COMPARISON(NAME, OPERATOR)                                                                                     \
    INLINE words NAME(floats a, floats b)                                                                              \
    {                                                                                                                  \
        words mask;                                                                                                    \
        EACH_PART(COMPARISON_PART, OPERATOR)                                                                           \
        return mask;                                                                                                   \
    }
#define COMPARISON_PART(I, OPERATOR) mask.p[I] = a.p[I] OPERATOR b.p[I];

COMPARISON(f_less, <)
COMPARISON(f_greater, >)
COMPARISON(f_at_least, >=)
COMPARISON(f_differs, !=) /* also NaN from itself */

INLINE words w_less(words a, words b)
{
#define W_LESS_PART(I) a.p[I] = a.p[I] < b.p[I];
    EACH_PART(W_LESS_PART)
    return a;
}

#ifndef HAS_BYTE_PRODUCTS
/* Adds the products of two halves of a with two of b, all with a sign. */
INLINE words w_dot_halves(words sum, words a, words b)
{
#define DOT_HALVES_PART(I) sum.p[I] += part_dot_halves(a.p[I], b.p[I]);
    EACH_PART(DOT_HALVES_PART)
    return sum;
}
#endif

/* a where the mask is set, else b. */
INLINE words w_choose(words mask, words a, words b)
{
#define CHOOSE_PART(I) mask.p[I] = part_choose(mask.p[I], a.p[I], b.p[I]);
    EACH_PART(CHOOSE_PART)
    return mask;
}

INLINE floats f_choose(words mask, floats a, floats b) { return w_bits(w_choose(mask, f_bits(a), f_bits(b))); }

INLINE floats f_abs(floats a) { return w_bits(w_and(f_bits(a), w_all(0x7fffffff))); }

/* ---- memory, at any address ---- */

INLINE floats f_load(const float *from)
{
    floats made;
#define F_LOAD_PART(I) made.p[I] = ((const float_part_anywhere *)from)[I];
    EACH_PART(F_LOAD_PART)
    return made;
}

INLINE void f_store(float *to, floats a)
{
#define F_STORE_PART(I) ((float_part_anywhere *)to)[I] = a.p[I];
    EACH_PART(F_STORE_PART)
}

INLINE words w_load(const void *from)
{
    words made;
#define W_LOAD_PART(I) made.p[I] = ((const word_part_anywhere *)from)[I];
    EACH_PART(W_LOAD_PART)
    return made;
}

INLINE void w_store(void *to, words a)
{
#define W_STORE_PART(I) ((word_part_anywhere *)to)[I] = a.p[I];
    EACH_PART(W_STORE_PART)
}

/* Sixteen bytes: the lowest of each lane. */
INLINE void w_store_bytes(void *to, words a)
{
    typedef uint8_t byte_part __attribute__((vector_size(WITHIN_PART), aligned(1), may_alias));
#define STORE_BYTES_PART(I) ((byte_part *)to)[I] = __builtin_convertvector(a.p[I], byte_part);
    EACH_PART(STORE_BYTES_PART)
}

/* The first `count` of these bytes. */
INLINE void w_store_some_bytes(void *to, words a, long count)
{
    uint8_t bytes[LANES];
    if (count >= LANES) {
        w_store_bytes(to, a);
        return;
    }
    w_store_bytes(bytes, a);
    memcpy(to, bytes, (size_t)count);
}

#ifndef HAS_MASKS
/* The first `count` words, 0 to 16; the others are zero and not touched. */
INLINE words w_load_some(const void *from, long count)
{
    int32_t some[LANES] = {0};
    memcpy(some, from, 4 * (size_t)count);
    return w_load(some);
}

INLINE void w_store_some(void *to, words a, long count) { memcpy(to, &a, 4 * (size_t)count); }
#endif

#ifndef HAS_MASKS_OF_HALVES
/* As w_load_halves, of the first `count`; the others are zero and not touched. */
INLINE words w_load_some_halves(const void *from, long count)
{
    uint16_t some[LANES] = {0};
    memcpy(some, from, 2 * (size_t)count);
    return w_load_halves(some);
}

/* The first `count` of 32 halves; the others are zero and not touched. */
INLINE words w_load_some_pairs(const void *from, long count)
{
    uint16_t some[2 * LANES] = {0};
    memcpy(some, from, 2 * (size_t)count);
    return w_load(some);
}
#endif

/* The first `count` numbers, sixteen at most; the others are zero and not touched. */
INLINE floats f_load_some(const float *from, long count)
{
    return count >= LANES ? f_load(from) : w_bits(w_load_some(from, count));
}

INLINE void f_store_some(float *to, floats a, long count)
{
    if (count >= LANES)
        f_store(to, a);
    else
        w_store_some(to, f_bits(a), count);
}

#include "bfloat16_lanes.h"

/* ---- across lanes ---- */

/* The sum of all lanes: of the halves, of the halves of that, and so on. */
INLINE float f_sum(floats a)
{
#if WIDTH == 64
    return part_sum(a.p[0]);
#elif WIDTH == 32
    return part_sum(a.p[0] + a.p[1]);
#else
    return part_sum((a.p[0] + a.p[2]) + (a.p[1] + a.p[3]));
#endif
}

/* A mask of the first `count` lanes. */
INLINE words w_first(long count)
{
    static const int32_t places[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    words all;
    memcpy(&all, places, sizeof all);
    return w_less(all, w_all((int32_t)count));
}

/* Whether a lane is not zero. */
INLINE int w_any(words a)
{
#define OR_PART(I) | a.p[I]
    return part_any(0 EACH_PART(OR_PART));
}

/* The greatest of all lanes; anything if one is NaN. */
INLINE float f_most(floats a)
{
#define MOST_PART(I) most = part_max(most, a.p[I]);
    float_part most = a.p[0];
    EACH_PART(MOST_PART)
    return part_most(most);
}

INLINE float_part part_all(float number) { return number - (float_part){0}; }

#endif
