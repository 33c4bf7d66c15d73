/* Matrices with rows quantised in blocks: the numbers of each format, in runs of 32.

   A number is a small integer, times a scale, and perhaps less an offset. Decoding gives what the format defines, held
   exactly or rounded once by float32. A product adds up integers times inputs first, and takes scales times sums, and
   offsets times the sums of inputs.

   A function blocks_NAME takes what a row has in one block, and gives it, a run at a time, to `take_bytes` or
   `take_floats`. */

#include "../vectors/bytes.h"

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

/* What takes the numbers: rows of inputs x [tokens, k], float32 or `input`, whose products are added to sums. Without any, the
   numbers go to `numbers` [DECODED], again and again. Offsets of the runs from number `first` on go to `offsets`, one
   for each run, or for each sixteen numbers. */
#define DECODED 256
#define OFFSETS_MOST 512 /* of a row at a time: a multiple of what a block has */

struct taker {
    float *numbers;
    const void *x;
    long k;
    float *offsets; /* [OFFSETS_MOST] */
    long first;
};

/* A number is (bits + first) * step + least. */
typedef struct { float first, step, least; } line;

#define NONE (-0.0f) /* leaves every number as it is, also -0 */

INLINE floats on_line(words bits, const line l)
{
    const floats number = w_to_floats(bits);
    return f_fma(l.first == 0 ? number : f_add(number, f_all(l.first)), f_all(l.step), f_all(l.least));
}

INLINE void add_products(const int tokens, const struct taker *to, run_sums *sums, long run, run_numbers numbers,
                         run_sums scale)
{
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++)
        sums[t] = add_run(sums[t], run_dot(numbers, (const input *)to->x + t * to->k + run * RUN), scale);
}

/* Run number `run` of a row, of numbers of at most `count` bits, with a line for each half of it. */
INLINE void take_halves(const int tokens, const struct taker *to, run_sums *sums, long run, bytes bits, const int count,
                        line first, line second)
{
    if (tokens) {
        float *offsets = to->offsets + 2 * (run - to->first);
        add_products(tokens, to, sums, run, b_to_numbers(bits, count), scales_of(first.step, second.step));
        offsets[0] = first.first * first.step + first.least;
        offsets[1] = second.first * second.step + second.least;
    } else {
        float *numbers = to->numbers + (run - to->first) * RUN;
        f_store(numbers, on_line(b_to_words(bits, 0), first));
        f_store(numbers + LANES, on_line(b_to_words(bits, 1), second));
    }
}

/* The same with one line. */
INLINE void take_bytes(const int tokens, const struct taker *to, run_sums *sums, long run, bytes bits, const int count,
                       line l)
{
    if (tokens) {
        add_products(tokens, to, sums, run, b_to_numbers(bits, count), scale_of(l.step));
        to->offsets[run - to->first] = l.first * l.step + l.least;
    } else
        take_halves(0, to, 0, run, bits, count, l, l);
}

/* The same of float32 numbers, which are less small, times a scale. */
INLINE void take_floats(const int tokens, const struct taker *to, run_sums *sums, long run, floats first, floats second,
                        float scale)
{
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++)
        sums[t] = add_run(sums[t], floats_dot(first, second, (const float *)to->x + t * to->k + run * RUN),
                          scale_of(scale));
    if (!tokens) {
        float *numbers = to->numbers + (run - to->first) * RUN;
        f_store(numbers, f_mul(first, f_all(scale)));
        f_store(numbers + LANES, f_mul(second, f_all(scale)));
    }
}

INLINE float half_at(const uint8_t *from)
{
    uint16_t bits;
    memcpy(&bits, from, 2);
    return half_to_float(bits);
}

#define TAKEN const int tokens, const struct taker *to, run_sums *sums, const struct block_row *row, long number

/* ---- the blocks of GGUF ---- */

INLINE void blocks_q8_0(TAKEN)
{
    const uint8_t *block = row->values + number * 34;
    take_floats(tokens, to, sums, number, w_to_floats(w_load_signed_bytes(block + 2)),
                w_to_floats(w_load_signed_bytes(block + 2 + LANES)), half_at(block));
}

INLINE void blocks_q4_0(TAKEN)
{
    const uint8_t *block = row->values + number * 18;
    take_bytes(tokens, to, sums, number, b_halves(block + 2), 4, (line){-8, half_at(block), NONE});
}

INLINE void blocks_q4_1(TAKEN)
{
    const uint8_t *block = row->values + number * 20;
    take_bytes(tokens, to, sums, number, b_halves(block + 4), 4, (line){0, half_at(block), half_at(block + 2)});
}

/* Four bits in the halves of 16 bytes, and a fifth in 4 bytes. */
INLINE bytes five_bits(const uint8_t *halves, const uint8_t *fifths)
{
    uint32_t bits;
    memcpy(&bits, fifths, 4);
    return b_or(b_halves(halves), b_sixteens(bits));
}

INLINE void blocks_q5_0(TAKEN)
{
    const uint8_t *block = row->values + number * 22;
    take_bytes(tokens, to, sums, number, five_bits(block + 6, block + 2), 5, (line){-16, half_at(block), NONE});
}

INLINE void blocks_q5_1(TAKEN)
{
    const uint8_t *block = row->values + number * 24;
    take_bytes(tokens, to, sums, number, five_bits(block + 8, block + 4), 5,
               (line){0, half_at(block), half_at(block + 2)});
}

/* The steps of eight groups, then what is least in them, from scales and minima of six bits in twelve bytes. */
INLINE void scales_and_least(const uint8_t *packed, float d, float dmin, float to[LANES])
{
    uint32_t from[3], bits[4];
    float by[LANES];
    memcpy(from, packed, sizeof from);
    bits[0] = from[0] & 0x3f3f3f3f;
    bits[1] = (from[2] & 0x0f0f0f0f) | (from[0] >> 6 & 0x03030303) << 4;
    bits[2] = from[1] & 0x3f3f3f3f;
    bits[3] = (from[2] >> 4 & 0x0f0f0f0f) | (from[1] >> 6 & 0x03030303) << 4;
    for (int i = 0; i < LANES; i++)
        by[i] = i < 8 ? d : -dmin;
    f_store(to, f_mul(w_to_floats(w_load_bytes(bits)), f_load(by)));
}

INLINE void blocks_q4_k(TAKEN)
{
    const uint8_t *block = row->values + number * 144, *values = block + 16;
    float lines[LANES];
    scales_and_least(block + 4, half_at(block), half_at(block + 2), lines);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        const bytes four = b_and(b_shift(b_load(values + j / 2 * RUN), 4 * (j % 2)), 15);
        take_bytes(tokens, to, sums, 8 * number + j, four, 4, (line){0, lines[j], lines[8 + j]});
    }
}

INLINE void blocks_q5_k(TAKEN)
{
    const uint8_t *block = row->values + number * 176, *values = block + 48;
    const bytes high = b_load(block + 16);
    float lines[LANES];
    scales_and_least(block + 4, half_at(block), half_at(block + 2), lines);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        const bytes four = b_and(b_shift(b_load(values + j / 2 * RUN), 4 * (j % 2)), 15);
        const bytes five = b_or(four, b_and(b_shift(high, j - 4), 16));
        take_bytes(tokens, to, sums, 8 * number + j, five, 5, (line){0, lines[j], lines[8 + j]});
    }
}

INLINE void blocks_q6_k(TAKEN)
{
    const uint8_t *low = row->values + number * 210, *high = low + 128;
    const int8_t *scales = (const int8_t *)(high + 64);
    const float d = half_at(high + 80);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        const int half = j / 4, g = j % 4;
        const bytes four = b_and(b_shift(b_load(low + 64 * half + g % 2 * RUN), g / 2 * 4), 15);
        const bytes two = b_and(b_shift(b_load(high + half * RUN), 2 * g - 4), 0x30);
        take_halves(tokens, to, sums, 8 * number + j, b_or(four, two), 6,
                    (line){-32, d * (float)scales[2 * j], NONE}, (line){-32, d * (float)scales[2 * j + 1], NONE});
    }
}

/* ---- others ---- */

/* Two numbers to a byte, the low half first. Scales are powers of two, given by their exponents. For products numbers
   are halves, less six. */
INLINE void blocks_mxfp4(TAKEN)
{
    static const uint8_t halves[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    const float numbers[LANES] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                  -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    const uint8_t *values = row->values + number * 16;
    const uint32_t exponent = row->scales[number], bits = exponent ? exponent << 23 : 1u << 22;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    if (tokens)
        take_bytes(tokens, to, sums, number, b_lookup(b_halves_in_turn(values), halves), 5,
                   (line){-12, scale / 2, NONE});
    else
        take_floats(0, to, 0, number, f_lookup(w_load_byte_halves(values), f_load(numbers)),
                    f_lookup(w_load_byte_halves(values + 8), f_load(numbers)), scale);
}

INLINE void blocks_fp8(TAKEN)
{
    float scale;
    memcpy(&scale, row->scales + number * RUN / row->group * 4, 4);
    take_floats(tokens, to, sums, number, f_load_float8(row->values + number * RUN),
                f_load_float8(row->values + number * RUN + LANES), 256.0f * scale);
}

INLINE void blocks_uint4(TAKEN)
{
    const long group = number * RUN / row->group;
    const line l = {-(float)row->zeros[group], half_at(row->scales + 2 * group), NONE};
    take_bytes(tokens, to, sums, number, b_halves(row->values + number * 16), 4, l);
}
