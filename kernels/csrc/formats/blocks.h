/* Matrices with rows quantised in blocks, from checkpoints and GGUF files: decoding, and products with them as
   stored. Products with bfloat16 inputs are summed in float32. */

#include "../bfloat16.h"
#include "block_numbers.h"

#define BLOCKS_PIECE 16 /* rows of the matrix that a thread takes at a time */

enum { FLOAT32, FLOAT16, BFLOAT16 };

typedef uint32_t column_place __attribute__((aligned(1), may_alias)); /* as planes have it */

/* Destination of decoded numbers: a row of `columns` numbers of the dtype `as`. Number i goes to place order[i], if
   there is an order. */
struct target {
    void *row;
    int as;
    const column_place *order;
    long columns;
};

/* Stores sixteen numbers from place `at` of a row on. */
INLINE void store_numbers(floats numbers, void *out, int as, long at)
{
    if (as == FLOAT32)
        f_store((float *)out + at, numbers);
    else if (as == FLOAT16)
        f_store_half((uint16_t *)out + at, numbers);
    else
        f_store_brief((uint16_t *)out + at, numbers, LANES);
}

/* Stores numbers from number `at` of a row on. */
static void store_run(const float *numbers, long count, const struct target *to, long at)
{
    if (!to->order) {
        for (long i = 0; i < count; i += LANES)
            store_numbers(f_load(numbers + i), to->row, to->as, at + i);
        return;
    }
    for (long i = 0; i < count; i += LANES) {
        uint32_t few[LANES];
        store_numbers(f_load(numbers + i), few, to->as, 0);
        for (long j = 0; j < LANES; j++) {
            const long place = to->order[at + i + j];
            if (place >= to->columns) /* no place: the plane was not checked when it arrived */
                continue;
            if (to->as == FLOAT32)
                ((uint32_t *)to->row)[place] = few[j];
            else
                ((uint16_t *)to->row)[place] = ((const uint16_t *)few)[j];
        }
    }
}

/* What the offsets of a row add to its product, from sums of inputs. */
INLINE float offset_sum(const float *offsets, const float *sums, long count)
{
    floats all = f_all(0);
    long i = 0;
    for (; i + LANES <= count; i += LANES)
        all = f_fma(f_load(offsets + i), f_load(sums + i), all);
    if (i < count)
        all = f_fma(f_load_some(offsets + i, count - i), f_load_some(sums + i, count - i), all);
    return f_sum(all);
}

/* Functions for each format, whose blocks have `EACH` numbers. It has an offset for `OFTEN` numbers, or none. */
#define FORMAT(NAME, EACH, OFTEN)                                                                                      \
    static void decode_##NAME(const struct block_row *row, long k, const struct target *target)                        \
    {                                                                                                                  \
        float numbers[DECODED];                                                                                        \
        for (long at = 0; at < k; at += DECODED) {                                                                     \
            const long end = fewer(k, at + DECODED);                                                                   \
            const struct taker to = {.numbers = numbers, .first = at / RUN};                                           \
            for (long number = at / EACH; number < end / EACH; number++)                                               \
                blocks_##NAME(0, &to, 0, row, number);                                                                 \
            store_run(numbers, end - at, target, at);                                                                  \
        }                                                                                                              \
    }                                                                                                                  \
    INLINE void sums_##NAME(const int tokens, const struct block_row *row, long k, const void *x, const float *sums,   \
                            float *out)                                                                                \
    {                                                                                                                  \
        const long often = OFTEN ? OFTEN : RUN, span = OFFSETS_MOST * often;                                           \
        float offsets[OFFSETS_MOST], rest[BLOCKS_MOST] = {0};                                                          \
        run_sums sum[BLOCKS_MOST];                                                                                     \
        _Pragma("GCC unroll 4")                                                                                        \
        for (int t = 0; t < tokens; t++)                                                                               \
            sum[t] = scale_of(0);                                                                                      \
        for (long at = 0; at < k; at += span) {                                                                        \
            const long end = fewer(k, at + span);                                                                      \
            const struct taker to = {.x = x, .k = k, .offsets = offsets, .first = at / RUN};                           \
            for (long number = at / EACH; number < end / EACH; number++)                                               \
                blocks_##NAME(tokens, &to, sum, row, number);                                                          \
            _Pragma("GCC unroll 4")                                                                                    \
            for (int t = 0; OFTEN && t < tokens; t++)                                                                  \
                rest[t] += offset_sum(offsets, sums + (t * k + at) / often, (end - at) / often);                       \
        }                                                                                                              \
        _Pragma("GCC unroll 4")                                                                                        \
        for (int t = 0; t < tokens; t++)                                                                               \
            out[t] = sum_of(sum[t]) + rest[t];                                                                         \
    }                                                                                                                  \
    static void dots_##NAME(int tokens, const struct block_row *row, long k, const void *x, const float *sums,         \
                            float *out)                                                                                \
    {                                                                                                                  \
        switch (tokens) {                                                                                              \
        case 1: sums_##NAME(1, row, k, x, sums, out); break;                                                           \
        case 2: sums_##NAME(2, row, k, x, sums, out); break;                                                           \
        case 3: sums_##NAME(3, row, k, x, sums, out); break;                                                           \
        default: sums_##NAME(4, row, k, x, sums, out);                                                                 \
        }                                                                                                              \
    }

FORMAT(q8_0, 32, 0)
FORMAT(q4_0, 32, 32)
FORMAT(q4_1, 32, 32)
FORMAT(q5_0, 32, 32)
FORMAT(q5_1, 32, 32)
FORMAT(q4_k, 256, 32)
FORMAT(q5_k, 256, 32)
FORMAT(q6_k, 256, 16)
FORMAT(mxfp4, 32, 32)
FORMAT(fp8, 32, 0)
FORMAT(uint4, 32, 32)

static const struct {
    void (*decode)(const struct block_row *, long, const struct target *);
    void (*dots)(int, const struct block_row *, long, const void *, const float *, float *);
    int often; /* numbers that share an offset; 0 if they are floats, which have none */
} FORMATS[] = { /* in the order of `Kind` in formats/blocks.py */
    {decode_q8_0, dots_q8_0, 0}, {decode_q4_0, dots_q4_0, 32},
    {decode_q4_1, dots_q4_1, 32}, {decode_q5_0, dots_q5_0, 32},
    {decode_q5_1, dots_q5_1, 32}, {decode_q4_k, dots_q4_k, 32},
    {decode_q5_k, dots_q5_k, 32}, {decode_q6_k, dots_q6_k, 16},
    {decode_mxfp4, dots_mxfp4, 32}, {decode_fp8, dots_fp8, 0},
    {decode_uint4, dots_uint4, 32},
};

static struct block_row block_row_of(const struct block_shape *shape, const uint8_t *plane, long number)
{
    return (struct block_row){
        plane + shape->offset[0] + number * shape->stride[0],
        plane + shape->offset[1] + number / shape->each * shape->stride[1],
        plane + shape->offset[2] + number * shape->stride[2],
        shape->group,
    };
}

static const column_place *order_of(const struct block_shape *shape, const uint8_t *plane)
{
    return shape->order ? (const column_place *)(plane + shape->order) : 0;
}

/* Decodes rows first to first + rows - 1 of the matrix [.., k] in `plane` to out [rows, k] of the dtype `as`.
   Takes: a plane as long as `shape` says, with any bytes, and rows inside of it: `check_decode` in planes.py refuses
   others. A number whose place is no column is left out. */
void EXPORT(decode_blocks)(const struct block_shape *shape, const uint8_t *plane, long first, long rows, long k,
                           void *out, int as, int threads)
{
#pragma omp parallel for schedule(guided) num_threads(threads)
    for (long i = 0; i < rows; i++) {
        const struct block_row row = block_row_of(shape, plane, first + i);
        const long size = as == FLOAT32 ? 4 : 2;
        const struct target to = {(uint8_t *)out + i * k * size, as, order_of(shape, plane), k};
        FORMATS[shape->format].decode(&row, k, &to);
    }
}

/* Inputs of one matrix: [tokens, k], and sums of as many neighbours as share an offset, [tokens, ..]. */
struct block_inputs {
    float *x; /* or input * */
    float *sums;
};

/* x [tokens, k], bfloat16, as numbers of this format are multiplied, with the columns in the stored order of the matrix
   in `plane`. */
static APART void fit_block_inputs(const struct block_shape *shape, const uint8_t *plane, const uint16_t *x,
                                   struct block_inputs to, long tokens, long k)
{
    const column_place *order = order_of(shape, plane);
    const int often = FORMATS[shape->format].often;
    input *fitted = (input *)to.x;
    for (long t = 0; t < tokens; t++, x += k)
        for (long run = 0; run < k; run += RUN, to.x += RUN, fitted += RUN) {
            float inputs[RUN];
            for (int i = 0; i < RUN; i++) {
                const uint32_t from = order ? order[run + i] : (uint32_t)(run + i);
                inputs[i] = from < k ? widened(x[from]) : 0;
            }
            const float first = f_sum(f_load(inputs)), second = f_sum(f_load(inputs + LANES));
            if (often == RUN)
                *to.sums++ = first + second;
            else if (often) {
                *to.sums++ = first;
                *to.sums++ = second;
            }
            if (often)
                fit_run(inputs, fitted);
            else
                memcpy(to.x, inputs, sizeof inputs);
        }
}

/* One piece: rows first to first + there - 1 of a matrix, with all tokens. */
static APART void blocks_piece(const struct block_shape *shape, const uint8_t *plane, struct block_inputs in,
                               uint16_t *out, long tokens, long n, long k, long first, long there)
{
    for (long j = first; j < first + there; j++) {
        const struct block_row row = block_row_of(shape, plane, j);
        float sums[BLOCKS_MOST];
        FORMATS[shape->format].dots((int)tokens, &row, k, in.x, in.sums, sums);
        for (long t = 0; t < tokens; t++)
            out[t * n + j] = rounded(sums[t]);
    }
}

static struct block_inputs inputs_in(void *room, long number, long count, long tokens, long k)
{
    float *sums = room, *x = sums + count * tokens * (k / LANES);
    return (struct block_inputs){x + number * tokens * k, sums + number * tokens * (k / LANES)};
}

/* For each i < count: out[i] [tokens, n] = x[i] [tokens, k] times the transpose of the matrix [n, k] in planes[i].
   `room` has 68 bytes for each sixteen inputs. tokens <= BLOCKS_MOST.
   Takes: planes as long as `shape` says, with any bytes: `locate` in planes.py refuses others. */
void EXPORT(block_products)(long count, const uint64_t *planes, const uint64_t *x, const uint64_t *out, long tokens,
                            long n, long k, const struct block_shape *shape, void *room, int threads)
{
    const long pieces = (n + BLOCKS_PIECE - 1) / BLOCKS_PIECE;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (long i = 0; i < count; i++)
            fit_block_inputs(shape, (const uint8_t *)planes[i], (const uint16_t *)x[i],
                             inputs_in(room, i, count, tokens, k), tokens, k);
#pragma omp for schedule(guided)
        for (long number = 0; number < count * pieces; number++) {
            const long i = number / pieces, first = number % pieces * BLOCKS_PIECE;
            blocks_piece(shape, (const uint8_t *)planes[i], inputs_in(room, i, count, tokens, k), (uint16_t *)out[i],
                         tokens, n, k, first, fewer(BLOCKS_PIECE, n - first));
        }
    }
}

#undef FORMAT
#undef NONE
#undef TAKEN
