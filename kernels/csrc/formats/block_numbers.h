/* Numbers of matrices with rows quantised in blocks, decoded to float32. It holds each product of a number and its
   scale exactly, or rounded once as the format defines.

   A function run_NAME decodes one run of a row, and gives it to `take`, sixteen numbers at a time. */

#include "../vectors/inputs.h"

#define BLOCKS_MOST 4 /* rows that are multiplied in one pass over the matrix */

/* `format` is an index in FORMATS. `offset` has the positions of values, scales and zeros in the plane, with rows
   `stride` bytes apart. `each` rows share a row of scales. `group` numbers of a row share a scale, if the format
   leaves it open. `order` is the offset of the columns' numbers, in their stored order, 0 if they are stored
   ascending. */
struct block_shape {
    int64_t format, offset[3], stride[3], each, group, order;
};

struct block_row {
    const uint8_t *values, *scales, *zeros;
    long group;
};

/* What takes the numbers: rows of inputs x [tokens, k], whose products are added to sums. Without any, the
   numbers go to `numbers` [DECODED], again and again. */
#define DECODED 256

struct taker {
    float *numbers;
    const float *x;
    long k;
};

typedef floats block_sums[BLOCKS_MOST][2];

INLINE void take(const int tokens, const struct taker *to, block_sums sum, long run, const int i, floats numbers);

INLINE float half_at(const uint8_t *from)
{
    uint16_t bits;
    memcpy(&bits, from, 2);
    return half_to_float(bits);
}

INLINE floats counted(void)
{
    const float numbers[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return f_load(numbers);
}

/* ---- numbers of four or five bits: (bits + first) * step + least ---- */

#ifdef LOOKS_UP_FASTEST

typedef struct { floats low, high; } line;
typedef __mmask16 fifths;

INLINE line line_of(float first, float step, float least)
{
    const floats number = f_add(counted(), f_all(first));
    return (line){f_fma(number, f_all(step), f_all(least)),
                  f_fma(f_add(number, f_all(16)), f_all(step), f_all(least))};
}

/* For the lowest four bits. */
INLINE floats on_line(words a, line l) { return f_lookup(a, l.low); }

/* For the lowest four bits and a fifth. */
INLINE floats on_line_5(words a, fifths fifth, line l)
{
    const __m512 low = (__m512)f_lookup(a, l.low).p[0];
    return (floats){{(float_part)_mm512_mask_permutexvar_ps(low, fifth, (__m512i)a.p[0], (__m512)l.high.p[0])}};
}

INLINE fifths fifths_of(words from, int bit)
{
    return _mm512_test_epi32_mask((__m512i)from.p[0], _mm512_set1_epi32(bit));
}

INLINE fifths fifths_in(uint32_t bits) { return (fifths)bits; }

#else

typedef struct { floats first, step, least; } line;
typedef words fifths; /* 16 or 0 */

INLINE line line_of(float first, float step, float least) { return (line){f_all(first), f_all(step), f_all(least)}; }

INLINE floats of_integer(words a, line l) { return f_fma(f_add(w_to_floats(a), l.first), l.step, l.least); }

INLINE floats on_line(words a, line l) { return of_integer(w_and(a, w_all(15)), l); }

INLINE floats on_line_5(words a, fifths fifth, line l) { return of_integer(w_or(w_and(a, w_all(15)), fifth), l); }

/* Those that are `bit` of each lane. */
INLINE fifths fifths_of(words from, int bit)
{
    const words there = w_and(from, w_all(bit));
    return bit > 16 ? w_shr(there, __builtin_ctz((unsigned)bit) - 4) : w_shl(there, 4 - __builtin_ctz((unsigned)bit));
}

/* Those that are bit i for lane i. */
INLINE fifths fifths_in(uint32_t bits)
{
    const int32_t powers[LANES] = {1,      1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                                   1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
    words there = w_and(w_all((int32_t)bits), w_load(powers));
#define THERE_PART(I) there.p[I] = (there.p[I] != 0) & 16;
    EACH_PART(THERE_PART)
    return there;
}

#endif

#define NONE (-0.0f) /* leaves every number as it is, also -0 */

/* 32 numbers: the low and the high halves of 16 bytes. */
INLINE void take_halves(const int tokens, const struct taker *to, block_sums sum, long run, const int i, const uint8_t *from, line l)
{
    const words both = w_load_bytes(from);
    take(tokens, to, sum, run, i, on_line(both, l));
    take(tokens, to, sum, run, i + 1, on_line(w_shr(both, 4), l));
}

/* The same with a fifth bit of each in four bytes. */
INLINE void take_fifths(const int tokens, const struct taker *to, block_sums sum, long run, const uint8_t *from,
                        const uint8_t *high, line l)
{
    const words both = w_load_bytes(from);
    uint32_t bits;
    memcpy(&bits, high, 4);
    take(tokens, to, sum, run, 0, on_line_5(both, fifths_in(bits), l));
    take(tokens, to, sum, run, 1, on_line_5(w_shr(both, 4), fifths_in(bits >> 16), l));
}

/* ---- the blocks of GGUF ---- */

INLINE void run_q8_0(const int tokens, const struct taker *to, block_sums sum, const struct block_row *row, long run)
{
    const uint8_t *block = row->values + run * 34;
    const floats d = f_all(half_at(block));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        take(tokens, to, sum, run * 32, i, f_mul(w_to_floats(w_load_signed_bytes(block + 2 + 16 * i)), d));
}

INLINE void run_q4_0(const int tokens, const struct taker *to, block_sums sum, const struct block_row *row, long run)
{
    const uint8_t *block = row->values + run * 18;
    take_halves(tokens, to, sum, run * 32, 0, block + 2, line_of(-8, half_at(block), NONE));
}

INLINE void run_q4_1(const int tokens, const struct taker *to, block_sums sum, const struct block_row *row, long run)
{
    const uint8_t *block = row->values + run * 20;
    take_halves(tokens, to, sum, run * 32, 0, block + 4, line_of(0, half_at(block), half_at(block + 2)));
}

INLINE void run_q5_0(const int tokens, const struct taker *to, block_sums sum, const struct block_row *row, long run)
{
    const uint8_t *block = row->values + run * 22;
    take_fifths(tokens, to, sum, run * 32, block + 6, block + 2, line_of(-16, half_at(block), NONE));
}

INLINE void run_q5_1(const int tokens, const struct taker *to, block_sums sum, const struct block_row *row, long run)
{
    const uint8_t *block = row->values + run * 24;
    take_fifths(tokens, to, sum, run * 32, block + 8, block + 4, line_of(0, half_at(block), half_at(block + 2)));
}

/* Scale and minimum number j of eight, packed in twelve bytes. */
INLINE line scale_min(const uint8_t *packed, const int j, float d, float dmin)
{
    const int scale = j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4);
    const int min = j < 4 ? packed[j + 4] & 63 : (packed[j + 4] >> 4) | (packed[j] >> 6 << 4);
    return line_of(0, d * (float)scale, -(dmin * (float)min));
}

INLINE void run_q4_k(const int tokens, const struct taker *to, block_sums sum, const struct block_row *row, long run)
{
    const uint8_t *block = row->values + run * 144, *values = block + 16;
    const float d = half_at(block), dmin = half_at(block + 2);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const line lower = scale_min(block + 4, 2 * j, d, dmin), upper = scale_min(block + 4, 2 * j + 1, d, dmin);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const words both = w_load_bytes(values + 32 * j + 16 * i);
            take(tokens, to, sum, run * 256, 4 * j + i, on_line(both, lower));
            take(tokens, to, sum, run * 256, 4 * j + 2 + i, on_line(w_shr(both, 4), upper));
        }
    }
}

INLINE void run_q5_k(const int tokens, const struct taker *to, block_sums sum, const struct block_row *row, long run)
{
    const uint8_t *block = row->values + run * 176, *high = block + 16, *values = block + 48;
    const float d = half_at(block), dmin = half_at(block + 2);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        const line l = scale_min(block + 4, j, d, dmin);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const words four = w_shr(w_load_bytes(values + 32 * (j / 2) + 16 * i), 4 * (j % 2));
            const fifths fifth = fifths_of(w_load_bytes(high + 16 * i), 1 << j);
            take(tokens, to, sum, run * 256, 2 * j + i, on_line_5(four, fifth, l));
        }
    }
}

INLINE void run_q6_k(const int tokens, const struct taker *to, block_sums sum, const struct block_row *row, long run)
{
    const uint8_t *low = row->values + run * 210, *high = low + 128;
    const int8_t *scales = (const int8_t *)(high + 64);
    const float d = half_at(high + 80);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const int h = j / 4, g = j % 4;
            const words four = w_shr(w_load_bytes(low + 64 * h + 32 * (g % 2) + 16 * i), 4 * (g / 2));
            const words two = w_shr(w_load_bytes(high + 32 * h + 16 * i), 2 * g);
            const words six = w_or(w_and(four, w_all(15)), w_shl(w_and(two, w_all(3)), 4));
            const floats number = w_to_floats(w_sub(six, w_all(32)));
            take(tokens, to, sum, run * 256, 2 * j + i, f_mul(number, f_all(d * (float)scales[2 * j + i])));
        }
}

/* ---- others ---- */

/* Two numbers to a byte, the low half first. Scales are powers of two, given by their exponents. */
INLINE void run_mxfp4(const int tokens, const struct taker *to, block_sums sum, const struct block_row *row, long run)
{
    const float numbers[LANES] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                  -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    const uint32_t exponent = row->scales[run], bits = exponent ? exponent << 23 : 1u << 22;
    const floats table = f_mul(f_load(numbers), w_bits(w_all((int32_t)bits)));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        take(tokens, to, sum, run * 32, i, f_lookup(w_load_byte_halves(row->values + run * 16 + 8 * i), table));
}

INLINE void run_fp8(const int tokens, const struct taker *to, block_sums sum, const struct block_row *row, long run)
{
    float scale;
    memcpy(&scale, row->scales + run * 32 / row->group * 4, 4);
    const floats factor = f_all(256.0f * scale);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        take(tokens, to, sum, run * 32, i, f_mul(f_load_float8(row->values + run * 32 + 16 * i), factor));
}

INLINE void run_uint4(const int tokens, const struct taker *to, block_sums sum, const struct block_row *row, long run)
{
    const long group = run * 32 / row->group;
    const line l = line_of(-(float)row->zeros[group], half_at(row->scales + 2 * group), NONE);
    take_halves(tokens, to, sum, run * 32, 0, row->values + run * 16, l);
}
