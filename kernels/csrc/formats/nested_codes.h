/* Numbers of bit-nested matrices, in registers.

   formats/nested.py describes the planes and their numbers. One 32-bit lane belongs to one of the sixteen rows of a
   tile, and its halves hold codes of an even and of the odd column behind it: pair j of a register has columns 2j and
   2j + 1. */

#include "nested_tiles.h"
#include "../vectors/inputs.h"

typedef enum { CODES, ALL_BITS, UPPER_CODES } depth; /* available bits of a number: 4, 8 or 2 */

/* What a depth and a format of two (`split`: three) planes have in a register. */
#define PAIRS_OF(SPLIT) (SPLIT ? 8 : 4)
#define BITS_OF(DEEP) (DEEP == UPPER_CODES ? 2 : 4)

/* The place of pair j in the halves of the words that nested_words gives. */
#define PLACE_OF(DEEP, SPLIT, J) (DEEP == UPPER_CODES ? 2 * (J) : SPLIT ? 4 * ((J) / 2) : 4 * (J))
#define WORD_OF(DEEP, SPLIT, J) (SPLIT && DEEP != UPPER_CODES ? (J) % 2 : 0)

/* Register `number` of the codes. Their two halves, if they are in two planes, are joined: those of even pairs in
   word[0], those of odd pairs in word[1]. */
INLINE void nested_words(const depth deep, const int split, const tile *from, long number, words word[2])
{
    const words codes = w_load(from->codes + number * REGISTER);
    word[0] = word[1] = codes;
    if (split && deep != UPPER_CODES) {
        const words low = w_load(from->low + number * REGISTER), upper = w_all((int32_t)0xcccccccc);
        word[0] = w_choose(upper, w_shl(codes, 2), low);
        word[1] = w_choose(upper, codes, w_shr(low, 2));
    }
}

INLINE words both_halves(int16_t number) { return w_all((int32_t)((uint16_t)number * 0x10001u)); }

/* Moves the bits from `from` on to bit `to`, in both halves. Others come along. */
INLINE words moved(words a, const int from, const int to)
{
    return from > to ? w_shr(a, from - to) : from < to ? w_shl(a, to - from) : a;
}

/* The codes of pair j. */
INLINE words nested_codes(const depth deep, const int split, const words word[2], const int j)
{
    const words mask = both_halves((1 << BITS_OF(deep)) - 1);
    return w_and(moved(word[WORD_OF(deep, split, j)], PLACE_OF(deep, split, j), 0), mask);
}

/* The integers round(code * step / 16) + rest + 8, 0 to 254, of pair j. */
INLINE words nested_integers(const int split, const words word[2], words rest, const int j, words steps)
{
    /* Code and step are scaled by 2^11 together. Codes stay where they are, if there is room in a half for the step. */
    const int place = PLACE_OF(ALL_BITS, split, j), to = place == 0 || place == 12 ? 11 : place;
    const words codes = w_and(moved(word[WORD_OF(ALL_BITS, split, j)], place, to), both_halves((int16_t)(15 << to)));
    const words left = w_and(moved(rest, 4 * (j % 4), 0), both_halves(15));
    return w_add(w_scale_halves(codes, w_shl(steps, 11 - to)), left);
}

INLINE words nested_rest(const int split, const tile *from, long number, const int j)
{
    return w_load(from->rest + (split ? 2 * number + j / 4 : number) * REGISTER);
}

/* A weight is `offset + by * number`, times its row's scale. The number is an integer as above if all planes are
   there, else a code. `steps` has the step in both halves of a lane. */
typedef struct {
    words steps;
    floats by, offset;
} group;

typedef uint64_t levels __attribute__((vector_size(TILE))); /* of rows 0 to 7, and of the others */

INLINE group group_of(const depth deep, const uint8_t *head, long groups, long g)
{
    const uint8_t *pair = head + 2 * TILE * (g + 1);
    const words step = w_load_bytes(pair);
    group of = {w_or(step, w_shl(step, 16)), f_mul(w_to_floats(step), f_all(1 / 16.f)),
                w_to_floats(w_load_signed_bytes(pair + TILE))};
    if (deep == ALL_BITS) {
        of.by = f_all(1);
        of.offset = f_sub(of.offset, f_all(8));
    } else if (deep == UPPER_CODES) { /* a code is centre + spread * (upper bits - 1.5): formats/steps.py */
        uint64_t eight;
        memcpy(&eight, head + 2 * TILE * (groups + 1) + g * TILE / 2, sizeof eight);
        const levels both = {eight & 0x0f0f0f0f0f0f0f0f, eight >> 4 & 0x0f0f0f0f0f0f0f0f};
        const words level = w_load_bytes(&both), three = w_all(3);
        const floats centre = f_fma(w_to_floats(w_and(level, three)), f_all(.5f), f_all(6.75f));
        const floats spread = f_fma(w_to_floats(w_shr(level, 2)), f_all(.5f), f_all(3.25f));
        of.offset = f_fma(of.by, f_fma(spread, f_all(-1.5f), centre), of.offset);
        of.by = f_mul(of.by, spread);
    }
    return of;
}
