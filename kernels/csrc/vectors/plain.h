/* Operations of vectors.h in plain C, for a processor without a level of its own, and to compare with. */

INLINE float_part part_choose(word_part mask, float_part a, float_part b)
{
    return (float_part)((mask & (word_part)a) | (~mask & (word_part)b));
}

/* Of numbers below 2^23 a sum with that rounds away what is behind the point. The others are whole. */
INLINE float_part part_round(float_part a)
{
    const word_part sign = (word_part)a & (int32_t)0x80000000, large = sign | 0x4b000000;
    const float_part size = (float_part)((word_part)a & 0x7fffffff), whole = (a + (float_part)large) - (float_part)large;
    return part_choose(size < 8388608.0f, (float_part)((word_part)whole | sign), a);
}

INLINE float_part part_floor(float_part a)
{
    const float_part near = part_round(a), one = (float_part)((near > a) & 0x3f800000);
    return near - one;
}

INLINE float_part part_ceil(float_part a)
{
    const float_part near = part_round(a), one = (float_part)((near < a) & 0x3f800000);
    return (float_part)((word_part)(near + one) | ((word_part)a & (int32_t)0x80000000));
}

#define part_fma(A, B, C) ((A) * (B) + (C)) /* rounded twice: fused in software it would take a hundred times as long */

/* a * b + c, rounded once: the sum is rounded to odd, so that rounding it to float32 is the only one that counts. */
INLINE float rounded_once(float a, float b, float c)
{
    const double product = (double)a * b, sum = product + c, other = sum - product;
    const double left = (product - (sum - other)) + (c - other);
    int64_t bits;
    double odd;
    memcpy(&bits, &sum, sizeof bits);
    const int64_t away = (left > 0) == (sum > 0) ? 1 : -1, inexact = (left > 0) | (left < 0);
    bits += bits & 1 ? 0 : inexact * away;
    memcpy(&odd, &bits, sizeof odd);
    return (float)odd;
}

INLINE float_part part_min(float_part a, float_part b) { return part_choose(a < b, a, b); }
INLINE float_part part_max(float_part a, float_part b) { return part_choose(a > b, a, b); }
#define part_dot_halves(A, B) (((A) << 16 >> 16) * ((B) << 16 >> 16) + ((A) >> 16) * ((B) >> 16))
INLINE word_part part_to_words(float_part a) { return __builtin_convertvector(part_round(a), word_part); }

INLINE float part_most(float_part a)
{
    float most = a[0];
    for (int i = 1; i < WITHIN_PART; i++)
        most = a[i] > most ? a[i] : most;
    return most;
}

INLINE int part_any(word_part a) { return (a[0] | a[1] | a[2] | a[3]) != 0; }

#define PLAIN_LOAD(NAME, TYPE)                                                                                         \
    INLINE words NAME(const void *from)                                                                                \
    {                                                                                                                  \
        typedef TYPE narrow __attribute__((vector_size(WITHIN_PART * sizeof(TYPE)), aligned(1), may_alias));           \
        words made;                                                                                                    \
        for (int i = 0; i < PARTS; i++)                                                                                \
            made.p[i] = __builtin_convertvector(((const narrow *)from)[i], word_part);                                 \
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

INLINE float half_to_float(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, size = bits & 0x7fff;
    uint32_t made;
    float number;
    if (size >= 0x7c00)
        made = sign | 0x7f800000 | (size & 0x3ff) << 13 | (size > 0x7c00) << 22; /* a NaN becomes quiet */
    else if (size >= 0x400)
        made = sign | ((size << 13) + (112u << 23));
    else {
        number = (float)size * 0x1p-24f;
        memcpy(&made, &number, sizeof made);
        made |= sign;
    }
    memcpy(&number, &made, sizeof number);
    return number;
}

INLINE uint16_t float_to_half(float number)
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (size >> 13 & 0x3ff));
    if (size >= 0x477ff000) /* rounds to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (size >= 113u << 23)
        return (uint16_t)(sign | (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13);
    float small;
    memcpy(&small, &size, sizeof small);
    return (uint16_t)(sign | (uint32_t)rintf(small * 0x1p24f));
}

INLINE floats f_load_half(const void *from)
{
    floats made;
    uint16_t halves[LANES];
    memcpy(halves, from, sizeof halves);
    for (int i = 0; i < LANES; i++)
        made.p[i / WITHIN_PART][i % WITHIN_PART] = half_to_float(halves[i]);
    return made;
}

INLINE void f_store_half(void *to, floats a)
{
    uint16_t halves[LANES];
    for (int i = 0; i < LANES; i++)
        halves[i] = float_to_half(a.p[i / WITHIN_PART][i % WITHIN_PART]);
    memcpy(to, halves, sizeof halves);
}

INLINE float fused(float a, float b, float c) { return a * b + c; }

INLINE float part_sum(float_part a) { return (a[0] + a[2]) + (a[1] + a[3]); }

/* table[i] for the lowest four bits i of each lane. Other bits have no meaning. */
INLINE floats f_lookup(words a, floats table)
{
    floats made;
    float numbers[LANES];
    memcpy(numbers, &table, sizeof numbers);
    for (int i = 0; i < LANES; i++)
        made.p[i / WITHIN_PART][i % WITHIN_PART] = numbers[a.p[i / WITHIN_PART][i % WITHIN_PART] & 15];
    return made;
}

/* Sixteen halves of eight bytes, the lower half of each first. Bits above the lowest four have no meaning. */
INLINE words w_load_byte_halves(const void *from)
{
    uint8_t bytes[LANES / 2], halves[LANES];
    memcpy(bytes, from, sizeof bytes);
    for (int i = 0; i < LANES; i++)
        halves[i] = (uint8_t)(bytes[i / 2] >> 4 * (i % 2));
    return w_load_bytes(halves);
}

/* Sixteen numbers of float8_e4m3fn, divided by 256: with the bits of float16, which has an exponent bit more. */
INLINE floats f_load_float8(const void *from)
{
    uint8_t bytes[LANES];
    uint16_t halves[LANES];
    memcpy(bytes, from, sizeof bytes);
    for (int i = 0; i < LANES; i++) {
        const int size = bytes[i] & 0x7f;
        halves[i] = (uint16_t)(size << 7 | (bytes[i] & 0x80) << 8 | (size == 0x7f ? 0x7c00 : 0));
    }
    return f_load_half(halves);
}

/* Of each half of a lane: the product of a, not negative, and b, in units of 1 << 15, to the nearest, ties up. */
INLINE words w_scale_halves(words a, words b)
{
#define SCALE_HALVES_PART(I)                                                                                           \
    a.p[I] = (((a.p[I] & 0xffff) * (b.p[I] & 0xffff) + 0x4000) >> 15) |                                                \
             (((a.p[I] >> 16) * (b.p[I] >> 16) + 0x4000) >> 15) << 16;
    EACH_PART(SCALE_HALVES_PART)
    return a;
}

/* made[b] gets words b, b + 4, b + 8, ... of four registers. */
INLINE void part_load_4(const void *from, word_part made[4])
{
    int32_t all[4 * WITHIN_PART];
    memcpy(all, from, sizeof all);
    for (int i = 0; i < 4 * WITHIN_PART; i++)
        made[i % 4][i / 4] = all[i];
}

/* column[j] gets word j of each of the sixteen rows. */
INLINE void w_transpose(const words row[LANES], words column[LANES])
{
    int32_t all[LANES][LANES], turned[LANES][LANES];
    memcpy(all, row, sizeof all);
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++)
            turned[j][i] = all[i][j];
    memcpy(column, turned, sizeof turned);
}
