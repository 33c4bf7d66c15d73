/* Bounds of attention scores from keys of 8 or 4 bits, page by page.

   A summary of a page and head has (W is the head dimension, padded to a multiple of 8):

       int32 count     tokens in it; 0 if its keys are not finite, so that nothing is known of it
       float reach     the greatest norm of a key
       bf16  centre[W]
       bf16  scale[P]  of each token
       bf16  error[P]  norm of each token's rounding error
       (up to a multiple of 64 bytes)
       uint8 numbers   [P / 16][W / 4][16 tokens][4 columns] of 8 bits, or [P / 16][W / 8][16 tokens][4 columns] where a
                       byte has column 8 j + c in its low and 8 j + 4 + c in its high half; number + 128, or + 8

   A key is its centre plus its rotated numbers times its scale plus the error. The query is rotated too, and rounded
   to numbers of 15 bits in two bytes. Its rounding error, and every other rounding, is added to the bound. */

#include "bounds.h"

static long wide_of(long dim) { return (dim + 7) / 8 * 8; }

static long numbers_at(long tokens, long wide) { return (8 + 2 * wide + 4 * tokens + 63) / 64 * 64; }

static long head_bytes(long tokens, long wide, int bits) { return numbers_at(tokens, wide) + tokens * wide * bits / 8; }

static struct summary summary_of(const uint8_t *from, long tokens, long wide)
{
    struct summary s = {.centre = (const uint16_t *)(from + 8)};
    memcpy(&s.count, from, 4);
    if (s.count > tokens) /* no summary of such a page */
        s.count = 0;
    memcpy(&s.reach, from + 4, 4);
    s.scale = s.centre + wide;
    s.error = s.scale + tokens;
    s.numbers = from + numbers_at(tokens, wide);
    return s;
}

/* Walsh-Hadamard transforms of the longest blocks of 2^n columns that divide `wide`. Norms are kept. */
static void rotate(float *row, long wide)
{
    const long block = wide & -wide;
    for (long half = 1; half < block; half *= 2)
        for (long at = 0; at < wide; at += 2 * half)
            for (long j = at; j < at + half; j++) {
                const float a = row[j], b = row[j + half];
                row[j] = a + b, row[j + half] = a - b;
            }
    const float factor = 1 / sqrtf((float)block);
    for (long j = 0; j < wide; j++)
        row[j] *= factor;
}

static void prepare(struct query *q, const float *from, long dim, long wide, int bits)
{
    float rotated[WIDEST];
    memset(q, 0, sizeof *q);
    memcpy(q->plain, from, sizeof(float) * dim);
    memcpy(rotated, q->plain, sizeof(float) * wide);
    rotate(rotated, wide);
    double squares = 0, sum = 0;
    float most = 0;
    for (long j = 0; j < wide; j++) {
        squares += (double)q->plain[j] * q->plain[j];
        sum += fabsf(rotated[j]);
        most = fmaxf(most, fabsf(rotated[j]));
    }
    const int levels = bits == 8 ? 127 : 7;
    q->norm = (float)(sqrt(squares) * 1.00001);
    q->half_sum = (float)(sum * 0.50001);
    q->slip = q->norm * ULP * (4 * wide + 64);
    if (most > 1e-30f) {
        q->step = most / STEPS;
        q->unresolved = q->step * 0.502f * levels * wide;
    } else
        q->unresolved = most * levels * wide; /* too small to be resolved */
    int32_t total = 0;
    for (long j = 0; j < wide && most > 1e-30f; j++) {
        const int number = (int)rintf(fmaxf(-STEPS, fminf(STEPS, rotated[j] / q->step)));
        const int high = (number + (number < 0 ? -64 : 64)) / 128;
        q->high[j] = (int8_t)high;
        q->low[j] = (int8_t)(number - 128 * high);
        total += number;
    }
    q->offset = (levels + 1) * total;
}

static float centre_product(const struct query *q, const struct summary *s, long wide)
{
    float lanes[8] = {0};
    for (long j = 0; j < wide; j += 8)
        for (int i = 0; i < 8; i++)
            lanes[i] += q->plain[j + i] * widened(s->centre[j + i]);
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

/* out [16] = the products of the query with 16 tokens. */
static void sixteen(const struct query *q, const uint8_t *numbers, long wide, int bits, int32_t *out)
{
    int32_t high[LANES] = {0}, low[LANES] = {0};
    for (long j = 0; j < wide; j += 4) {
        const uint8_t *four = numbers + (bits == 8 ? j : j / 8 * 4) * LANES;
        const int shift = bits == 8 ? 0 : (int)(j & 4), mask = bits == 8 ? 255 : 15;
        for (int t = 0; t < LANES; t++)
            for (int c = 0; c < 4; c++) {
                const int number = four[4 * t + c] >> shift & mask;
                high[t] += number * q->high[j + c];
                low[t] += number * q->low[j + c];
            }
    }
    for (int t = 0; t < LANES; t++)
        out[t] = 128 * high[t] + low[t] - q->offset;
}

static void page_anywhere(const struct query *q, const struct summary *s, long wide, int bits, const struct rule *rule,
                          float *lower, float *upper)
{
    const float product = centre_product(q, s, wide), slip = q->slip * s->reach;
    float bounds[LONGEST], top = -INFINITY, worst = 0, largest = 0, sum = 0;
    for (long first = 0; first < s->count; first += LANES) {
        int32_t products[LANES];
        sixteen(q, s->numbers + first * wide * bits / 8, wide, bits, products);
        for (long t = first; t < first + LANES && t < s->count; t++) {
            const float scale = widened(s->scale[t]), left = q->norm * widened(s->error[t]), half = q->half_sum * scale;
            const float error = (left < half ? left : half) + q->unresolved * scale + slip;
            const float score = (float)products[t - first] * (q->step * scale) + product;
            const float most = rule->scaling * (score + error);
            bounds[t] = bounded(most, rule);
            top = fmaxf(top, bounds[t]);
            worst = fmaxf(worst, rule->scaling * error);
            largest = fmaxf(largest, fabsf(bounds[t]));
            if (!isfinite(most)) /* a softcap would hide it */
                worst = INFINITY;
        }
    }
    for (long t = 0; t < s->count; t++)
        sum += expf(bounds[t] - top);
    conclude(top, sum, worst, largest, rule, lower, upper);
}

/* lower and upper [heads, rows, count]: bounds of the logarithm of the sum of exp(score) over the tokens of each of
   `count` pages, whose summaries are `stride` bytes apart. query is [heads, rows, dim]. `room` has
   penstock_bounds_room bytes. dim is at most 512, tokens at most 256. `wide` selects the kernel of
   penstock_bounds_wide.
   Takes: `count` summaries `stride` bytes apart, with any bytes: one that tells more tokens than a page has
   tells nothing. quantised_keys.py refuses larger dim and tokens. */
void penstock_bounds(const uint8_t *summaries, long stride, long count, const float *query, long heads, long rows,
                     long tokens, long dim, int bits, float scaling, float softcap, float rounding, void *room,
                     float *lower, float *upper, int wide_kernel, int threads)
{
    const long wide = wide_of(dim), bytes = head_bytes(tokens, wide, bits), shares = (count + PAGES - 1) / PAGES;
    const struct rule rule = {scaling, softcap, rounding};
    struct query *queries = room;
    for (long row = 0; row < heads * rows; row++)
        prepare(queries + row, query + row * dim, dim, wide, bits);
#pragma omp parallel for schedule(guided) num_threads(threads) if (threads > 1)
    for (long share = 0; share < heads * shares; share++) {
        const long head = share / shares, first = share % shares * PAGES;
        const struct query *own = queries + head * rows;
        for (long page = first; page < first + PAGES && page < count; page++) {
            const struct summary s = summary_of(summaries + page * stride + head * bytes, tokens, wide);
            for (long row = 0; row < rows; row += MOST) {
                const long few = rows - row < MOST ? rows - row : MOST, at = (head * rows + row) * count + page;
                if (s.count > 0 && wide_kernel) {
                    penstock_bounds_page_wide((int)few, bits, own + row, &s, wide, &rule, lower + at, upper + at, count);
                    continue;
                }
                for (long i = 0; i < few; i++)
                    if (s.count > 0)
                        page_anywhere(own + row + i, &s, wide, bits, &rule, lower + at + i * count,
                                      upper + at + i * count);
                    else
                        unknown(lower + at + i * count, upper + at + i * count);
            }
        }
    }
}

long penstock_bounds_room(void) { return sizeof(struct query); }
