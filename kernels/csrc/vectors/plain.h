/* Operations of vectors.h in plain C, for a processor without a level of its own, and to compare with. */

/* The numbers of a, then those of b, at places that follow. */
#ifdef __clang__
#define SHUFFLED(TYPE, A, B, ...) __builtin_shufflevector(A, B, __VA_ARGS__)
#else
#define SHUFFLED(TYPE, A, B, ...) __builtin_shuffle(A, B, (TYPE){__VA_ARGS__})
#endif

/* Bits of a where the mask is set, else of b. Two that exchange bits of a and b share two of the three steps. */
#define part_choose(MASK, A, B) ((((A) ^ (B)) & (MASK)) ^ (B))

INLINE float_part plain_choose(word_part mask, float_part a, float_part b)
{
    return (float_part)part_choose(mask, (word_part)a, (word_part)b);
}

/* Of numbers below 2^23 a sum with that rounds away what is behind the point. The others are whole. */
INLINE float_part part_round(float_part a)
{
    const word_part sign = (word_part)a & (int32_t)0x80000000, large = sign | 0x4b000000;
    const float_part size = (float_part)((word_part)a & 0x7fffffff), whole = (a + (float_part)large) - (float_part)large;
    return plain_choose(size < 8388608.0f, (float_part)((word_part)whole | sign), a);
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

typedef double double_part __attribute__((vector_size(WIDTH)));
typedef int64_t long_part __attribute__((vector_size(WIDTH)));
typedef uint64_t unsigned_long_part __attribute__((vector_size(WIDTH)));
typedef double two_double_parts __attribute__((vector_size(2 * WIDTH)));

/* a * b + c in twice the bits, rounded to odd: rounding it to float32 is then the only rounding that counts. */
INLINE double_part to_odd(double_part a, double_part b, double_part c)
{
    const double_part product = a * b, sum = product + c, other = sum - product;
    const double_part left = (product - (sum - other)) + (c - other);
    const long_part bits = (long_part)sum, inexact = (left > 0) | (left < 0), even = (bits & 1) - 1;
    const long_part toward_zero = (long_part)((unsigned_long_part)((long_part)left ^ bits) >> 63);
    return (double_part)(bits + ((1 - 2 * toward_zero) & inexact & even));
}

/* a * b + c, rounded once. Parts are converted whole: compilers take the halves of one apart by single numbers. */
INLINE float_part part_fma_once(float_part a, float_part b, float_part c)
{
    const two_double_parts wide[3] = {__builtin_convertvector(a, two_double_parts),
                                      __builtin_convertvector(b, two_double_parts),
                                      __builtin_convertvector(c, two_double_parts)};
    double_part half[3][2], sum[2];
    two_double_parts both;
    memcpy(half, wide, sizeof half);
    for (int i = 0; i < 2; i++)
        sum[i] = to_odd(half[0][i], half[1][i], half[2][i]);
    memcpy(&both, sum, sizeof both);
    return __builtin_convertvector(both, float_part);
}

INLINE float_part part_min(float_part a, float_part b) { return plain_choose(a < b, a, b); }
INLINE float_part part_max(float_part a, float_part b) { return plain_choose(a > b, a, b); }
INLINE word_part part_to_words(float_part a) { return __builtin_convertvector(part_round(a), word_part); }

#define part_dot_halves(A, B) (((A) << 16 >> 16) * ((B) << 16 >> 16) + ((A) >> 16) * ((B) >> 16))

INLINE float part_most(float_part a)
{
    float most = a[0];
    for (int i = 1; i < WITHIN_PART; i++)
        most = a[i] > most ? a[i] : most;
    return most;
}

INLINE int part_any(word_part a) { return (a[0] | a[1] | a[2] | a[3]) != 0; }

/* Bytes of a and b in turn, of the first and of the second half of each sixteen. */
INLINE byte_part part_zip_low(byte_part a, byte_part b)
{
    return SHUFFLED(byte_part, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

INLINE byte_part part_zip_high(byte_part a, byte_part b)
{
    return SHUFFLED(byte_part, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

typedef uint16_t half_part __attribute__((vector_size(WIDTH)));

INLINE half_part zip_halves_low(half_part a, half_part b) { return SHUFFLED(half_part, a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
INLINE half_part zip_halves_high(half_part a, half_part b) { return SHUFFLED(half_part, a, b, 4, 12, 5, 13, 6, 14, 7, 15); }

/* Sixteen halves in the upper halves of lanes. */
INLINE words upper_halves(half_part low, half_part high)
{
    const half_part zero = {0};
    return (words){{(word_part)zip_halves_low(zero, low), (word_part)zip_halves_high(zero, low),
                    (word_part)zip_halves_low(zero, high), (word_part)zip_halves_high(zero, high)}};
}

/* Sixteen bytes in the upper bytes of lanes. */
INLINE words upper_bytes(const void *from)
{
    const byte_part bytes = part_load_bytes(from), zero = {0};
    return upper_halves((half_part)part_zip_low(zero, bytes), (half_part)part_zip_high(zero, bytes));
}

INLINE words w_load_bytes(const void *from)
{
    words made = upper_bytes(from);
#define LOAD_BYTES_PART(I) made.p[I] = (word_part)((unsigned_part)made.p[I] >> 24);
    EACH_PART(LOAD_BYTES_PART)
    return made;
}

INLINE words w_load_signed_bytes(const void *from)
{
    words made = upper_bytes(from);
#define LOAD_SIGNED_PART(I) made.p[I] = made.p[I] >> 24;
    EACH_PART(LOAD_SIGNED_PART)
    return made;
}

INLINE words w_load_halves(const void *from)
{
    words made = upper_halves((half_part)part_load_bytes(from), (half_part)part_load_bytes((const char *)from + WIDTH));
#define LOAD_HALVES_PART(I) made.p[I] = (word_part)((unsigned_part)made.p[I] >> 16);
    EACH_PART(LOAD_HALVES_PART)
    return made;
}

INLINE void w_store_halves(void *to, words a)
{
#define NARROW(A, B) (byte_part) SHUFFLED(half_part, (half_part)(A), (half_part)(B), 0, 2, 4, 6, 8, 10, 12, 14)
    part_store_bytes(to, NARROW(a.p[0], a.p[1]));
    part_store_bytes((char *)to + WIDTH, NARROW(a.p[2], a.p[3]));
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
    return (uint16_t)(sign | (uint32_t)((small * 0x1p24f + 0x1p23f) - 0x1p23f)); /* the nearest whole number */
}

INLINE floats f_load_half(const void *from)
{
    floats made;
    uint16_t halves[LANES];
    float numbers[LANES];
    memcpy(halves, from, sizeof halves);
    for (int i = 0; i < LANES; i++)
        numbers[i] = half_to_float(halves[i]);
    memcpy(&made, numbers, sizeof made);
    return made;
}

INLINE void f_store_half(void *to, floats a)
{
    uint16_t halves[LANES];
    float numbers[LANES];
    memcpy(numbers, &a, sizeof numbers);
    for (int i = 0; i < LANES; i++)
        halves[i] = float_to_half(numbers[i]);
    memcpy(to, halves, sizeof halves);
}

INLINE float fused(float a, float b, float c) { return a * b + c; }

INLINE float part_sum(float_part a) { return (a[0] + a[2]) + (a[1] + a[3]); }

/* table[i] for the lowest four bits i of each lane. Other bits have no meaning. */
INLINE floats f_lookup(words a, floats table)
{
    floats made;
    int32_t places[LANES];
    float numbers[LANES], found[LANES];
    memcpy(places, &a, sizeof places);
    memcpy(numbers, &table, sizeof numbers);
    for (int i = 0; i < LANES; i++)
        found[i] = numbers[places[i] & 15];
    memcpy(&made, found, sizeof made);
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
    for (int i = 0; i < LANES; i += 4)
        for (int part = 0; part < PARTS; part++) {
            const word_part a = row[i].p[part], b = row[i + 1].p[part], c = row[i + 2].p[part], d = row[i + 3].p[part];
            const word_part low[2] = {SHUFFLED(word_part, a, b, 0, 4, 1, 5), SHUFFLED(word_part, c, d, 0, 4, 1, 5)};
            const word_part high[2] = {SHUFFLED(word_part, a, b, 2, 6, 3, 7), SHUFFLED(word_part, c, d, 2, 6, 3, 7)};
            column[4 * part].p[i / 4] = SHUFFLED(word_part, low[0], low[1], 0, 1, 4, 5);
            column[4 * part + 1].p[i / 4] = SHUFFLED(word_part, low[0], low[1], 2, 3, 6, 7);
            column[4 * part + 2].p[i / 4] = SHUFFLED(word_part, high[0], high[1], 0, 1, 4, 5);
            column[4 * part + 3].p[i / 4] = SHUFFLED(word_part, high[0], high[1], 2, 3, 6, 7);
        }
}

/* table[i] for each byte i below 16. */
INLINE byte_part part_lookup_bytes(byte_part a, byte_part table)
{
    uint8_t places[WIDTH], numbers[WIDTH];
    memcpy(places, &a, sizeof places);
    memcpy(numbers, &table, sizeof numbers);
    for (int i = 0; i < WIDTH; i++)
        places[i] = numbers[places[i]];
    return part_load_bytes(places);
}

/* ---- 64 codes of two bits, a byte each ---- */

/* In sixteen bytes: those in the lowest bits of each, then those in the next. */
INLINE void codes_in_stripes(const void *from, byte_part codes[PARTS])
{
    const byte_part bytes = part_load_bytes(from);
#define STRIPE_PART(I) codes[I] = (byte_part)((unsigned_part)bytes >> 2 * I) & 3;
    EACH_PART(STRIPE_PART)
}

/* In sixteen bytes: four of each byte, then four of the next. */
INLINE void codes_in_turn(const void *from, byte_part codes[PARTS])
{
    uint8_t bytes[WIDTH], all[4 * WIDTH];
    memcpy(bytes, from, sizeof bytes);
    for (int i = 0; i < 4 * WIDTH; i++)
        all[i] = bytes[i / 4] >> 2 * (i % 4) & 3;
#define TURN_PART(I) codes[I] = part_load_bytes(all + I * WIDTH);
    EACH_PART(TURN_PART)
}

/* The lowest bits of eight bytes: a product moves them into its highest byte. */
INLINE uint64_t bits_of_bytes(uint64_t bytes)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    bytes = __builtin_bswap64(bytes);
#endif
    return bytes * 0x0102040810204080 >> 56;
}

/* to[i] = table[codes[i]] for 64 codes, or if that code is 0, the next one of `from`. Returns the number of those. May
   read as many bytes as a part has behind the last. */
INLINE uint64_t spread(const byte_part codes[PARTS], const uint8_t table[16], const uint8_t *from, uint8_t *to)
{
    uint64_t left = 0, used = 0, none[2];
#define SPREAD_PART(I)                                                                                                 \
    {                                                                                                                  \
        const byte_part code = codes[I], zero = (byte_part)(code == 0) & 1;                                            \
        part_store_bytes(to + I * WIDTH, ((byte_part)(code == 1) & table[1]) | ((byte_part)(code == 2) & table[2]) |   \
                                             ((byte_part)(code == 3) & table[3]));                                     \
        memcpy(none, &zero, sizeof none);                                                                              \
        left |= (bits_of_bytes(none[0]) | bits_of_bytes(none[1]) << 8) << 16 * I;                                      \
    }
    EACH_PART(SPREAD_PART)
    for (; left; left &= left - 1)
        to[__builtin_ctzll(left)] = from[used++];
    return used;
}
