/* Operations of vectors.h in plain C, for a processor without a level of its own, and to compare with. */

#include <math.h>

#define PLAIN_1(NAME, EXPRESSION)                                                                                      \
    INLINE float_part NAME(float_part a)                                                                               \
    {                                                                                                                  \
        for (int i = 0; i < WITHIN_PART; i++)                                                                          \
            a[i] = EXPRESSION(a[i]);                                                                                   \
        return a;                                                                                                      \
    }

PLAIN_1(part_floor, floorf)
PLAIN_1(part_ceil, ceilf)
PLAIN_1(part_round, rintf)

#define part_fma(A, B, C) ((A) * (B) + (C)) /* rounded twice: fused in software it would take a hundred times as long */

INLINE float_part part_choose(word_part mask, float_part a, float_part b)
{
    return (float_part)((mask & (word_part)a) | (~mask & (word_part)b));
}

INLINE float_part part_min(float_part a, float_part b) { return part_choose(a < b, a, b); }
INLINE float_part part_max(float_part a, float_part b) { return part_choose(a > b, a, b); }
INLINE word_part part_to_words(float_part a) { return __builtin_convertvector(part_round(a), word_part); }

#define PLAIN_LOAD(NAME, TYPE)                                                                                         \
    INLINE words NAME(const void *from)                                                                                \
    {                                                                                                                  \
        words made = {{{0}}};                                                                                          \
        TYPE narrow[LANES];                                                                                            \
        memcpy(narrow, from, sizeof narrow);                                                                           \
        for (int i = 0; i < LANES; i++)                                                                                \
            made.p[i / WITHIN_PART][i % WITHIN_PART] = narrow[i];                                                      \
        return made;                                                                                                   \
    }

PLAIN_LOAD(w_load_bytes, uint8_t)
PLAIN_LOAD(w_load_signed_bytes, int8_t)
PLAIN_LOAD(w_load_halves, uint16_t)

INLINE void w_store_halves(void *to, words a)
{
    uint16_t halves[LANES];
    for (int i = 0; i < LANES; i++)
        halves[i] = (uint16_t)a.p[i / WITHIN_PART][i % WITHIN_PART];
    memcpy(to, halves, sizeof halves);
}
