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

#include "../vectors/inputs.h"
#include "passes.h"

#define STRIP 32 /* the most numbers in a row of a strip */

struct strips { /* a plane: bits of a number; channels or tokens along all strips of a head; strips */
    long bits, along, strips; /* `strips` of a head */
    long inner, width, half;  /* `half`: the first number of a row in the second half of the registers */
    long row, size;           /* bytes of a row, and of a strip */
};

struct kv_inputs { /* queries or probabilities, [.., stride], bfloat16 (brief) or float32 */
    const void *numbers;
    long stride;
    int brief;
};

struct strip_scoring {
    struct kv_inputs query; /* [heads * rows, dim] */
    long rows;              /* for each head of the keys */
    float scaling;
    float *out; /* [heads * rows, total] */
    long total;
};

struct strip_weighing {
    struct kv_inputs probabilities; /* [heads * rows, total] */
    long rows;                      /* for each head of the values */
    float *out;                     /* [heads * rows, dim] */
};

INLINE float strip_offset(struct strips of) { return of.bits == 4 ? 8 : 0; }

static struct strips strips_of(long tokens, long dim, long bits, int of_keys)
{
    const long along = of_keys ? tokens : dim, inner = of_keys ? dim : tokens;
    const long strips = (along + STRIP - 1) / STRIP, share = (along + strips - 1) / strips;
    const long width = share + share % 2, row = width * bits / 8, half = bits == 4 ? width / 2 : STRIP / 2;
    return (struct strips){bits, along, strips, inner, width, half, row, inner * (row + 4)};
}

/* A row of a strip. */
INLINE void unpack(const int bits, const uint8_t *row, floats halves[2])
{
    const words first = w_load_bytes(row);
    if (bits == 8) {
        halves[0] = w_to_floats(first);
        halves[1] = w_to_floats(w_load_bytes(row + LANES));
    } else {
        halves[0] = w_to_floats(w_and(first, w_all(15)));
        halves[1] = w_to_floats(w_shr(first, 4));
    }
}

/* Where the two halves of a row lie among its numbers, and how many of `there` numbers each has. */
INLINE void halve(struct strips of, long there, long first[2], long counts[2])
{
    const long end = fewer(there, of.half), rest = there - of.half;
    first[0] = 0, first[1] = of.half;
    counts[0] = end, counts[1] = rest > 0 ? fewer(rest, LANES) : 0;
}

/* Sixteen numbers at most, bfloat16 (brief) or float32. */
INLINE floats load_inputs(const int brief, const void *from, long at, long count)
{
    if (!brief)
        return f_load_some((const float *)from + at, count);
    return f_load_some_brief((const uint16_t *)from + at, count);
}

/* factors[i] = x[i] * scale[i] for `count` rows of a strip. Returns the contribution of their zeros. */
INLINE float fold(const int brief, const void *x, const uint8_t *scales, const uint8_t *zeros, float offset, long count,
                  float *factors)
{
    floats sum = f_all(0);
    for (long i = 0; i < count; i += LANES) {
        const long left = fewer(count - i, LANES);
        const floats number = load_inputs(brief, x, i, left);
        const floats scale = load_inputs(1, scales, i, left), zero = load_inputs(1, zeros, i, left);
        f_store_some(factors + i, f_mul(number, scale), left);
        sum = f_fma(number, f_fma(f_all(-offset), scale, zero), sum);
    }
    return f_sum(sum);
}

/* Adds to sum[r], for `rows` rows of x from number `first` on, that row times a strip: the `count` numbers of each
   from `at` on. */
INLINE void add_strip(const int rows, const int bits, struct kv_inputs x, long first, long at, long count,
                      struct strips of, const uint8_t *strip, float *factors, floats sum[][2])
{
    const uint8_t *scales = strip + of.inner * of.row, *zeros = scales + 2 * of.inner;
    float rest[MOST_ROWS];
    /* Prefetches the next strip. Its scales lie behind its numbers. */
    for (long i = 0; i < 4 * of.inner; i += LINE)
        __builtin_prefetch(strip + 2 * of.size - i - 1);
    for (int r = 0; r < rows; r++) {
        const long from = (first + r) * x.stride + at;
        /* Two loops, because one with the condition inside is slower. */
        rest[r] = x.brief ? fold(1, (const uint16_t *)x.numbers + from, scales, zeros, strip_offset(of), count,
                                 factors + r * of.inner)
                          : fold(0, (const float *)x.numbers + from, scales, zeros, strip_offset(of), count,
                                 factors + r * of.inner);
    }
    const uint8_t *row = strip;
    for (long i = 0; i < count; i++, row += of.row) {
        floats numbers[2];
        unpack(bits, row, numbers);
        __builtin_prefetch(row + of.size);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            for (int h = 0; h < 2; h++)
                sum[r][h] = f_fma(numbers[h], f_all(factors[r * of.inner + i]), sum[r][h]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++)
            sum[r][h] = f_add(sum[r][h], f_all(rest[r]));
}

INLINE void score_strip_rows(const int rows, const int bits, const struct strip_scoring *s, struct strips of,
                             const uint8_t *strip, long first, long at, float *factors)
{
    floats sum[MOST_ROWS][2];
    long places[2], counts[2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = f_all(0);
    add_strip(rows, bits, s->query, first, 0, of.inner, of, strip, factors, sum);
    halve(of, fewer(s->total - at, of.width), places, counts);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) {
            const int brief = s->query.brief;
            const floats score = f_mul(brief ? f_near_brief(sum[r][h]) : sum[r][h], f_all(s->scaling));
            f_store_some(s->out + (first + r) * s->total + at + places[h], brief ? f_near_brief(score) : score, counts[h]);
        }
}

INLINE void weigh_strip_rows(const int rows, const int bits, const struct strip_weighing *w, struct strips of,
                             const uint8_t *strip, long first, long at, long channel, float *factors)
{
    const long count = fewer(w->probabilities.stride - at, of.inner);
    floats sum[MOST_ROWS][2];
    long places[2], counts[2];
    halve(of, fewer(of.along - channel, of.width), places, counts);
    float *const out = w->out + first * of.along + channel;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++)
            sum[r][h] = f_load_some(out + r * of.along + places[h], counts[h]);
    add_strip(rows, bits, w->probabilities, first, at, count, of, strip, factors, sum);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++)
            f_store_some(out + r * of.along + places[h], sum[r][h], counts[h]);
}

/* The scores of one strip of keys, whose first token is number `at`. */
static APART void score_strip(const struct strip_scoring *s, struct strips of, const uint8_t *strip, long head, long at)
{
    float factors[MOST_ROWS * of.inner];
#define SCORE_8(ROWS, ROW) score_strip_rows(ROWS, 8, s, of, strip, head * s->rows + ROW, at, factors)
#define SCORE_4(ROWS, ROW) score_strip_rows(ROWS, 4, s, of, strip, head * s->rows + ROW, at, factors)
    if (of.bits == 8)
        IN_PASSES(s->rows, SCORE_8)
    else
        IN_PASSES(s->rows, SCORE_4)
}

/* Adds one strip of values from channel `channel` on. The first token of its page is number `at`. */
static APART void weigh_strip(const struct strip_weighing *w, struct strips of, const uint8_t *strip, long head,
                              long channel, long at)
{
    float factors[MOST_ROWS * of.inner];
#define WEIGH_8(ROWS, ROW) weigh_strip_rows(ROWS, 8, w, of, strip, head * w->rows + ROW, at, channel, factors)
#define WEIGH_4(ROWS, ROW) weigh_strip_rows(ROWS, 4, w, of, strip, head * w->rows + ROW, at, channel, factors)
    if (of.bits == 8)
        IN_PASSES(w->rows, WEIGH_8)
    else
        IN_PASSES(w->rows, WEIGH_4)
}

/* Decodes the numbers of a strip, in their order: out [inner, STRIP]. */
static APART void decode_strip(struct strips of, const uint8_t *strip, float *out)
{
    const uint8_t *scales = strip + of.inner * of.row, *zeros = scales + 2 * of.inner;
    const floats offset = f_all(strip_offset(of));
    long places[2], counts[2];
    halve(of, of.width, places, counts);
    for (long i = 0; i < of.inner; i++, out += STRIP) {
        uint16_t scale, zero;
        memcpy(&scale, scales + 2 * i, sizeof scale);
        memcpy(&zero, zeros + 2 * i, sizeof zero);
        floats numbers[2];
        if (of.bits == 8)
            unpack(8, strip + i * of.row, numbers);
        else
            unpack(4, strip + i * of.row, numbers);
        for (int h = 0; h < 2; h++)
            f_store_some(out + places[h],
                          f_add(f_mul(f_sub(numbers[h], offset), f_all(widened(scale))), f_all(widened(zero))), counts[h]);
    }
}

/* ---- calls ---- */

/* out [heads * rows, total], from column `at` to the last token or column: query [heads * rows, dim] times the keys
   [heads, tokens, dim] in each of `count` planes, times scaling. Both are rounded to bfloat16 if it is `brief`.
   Takes: pages as long as key_bytes, with any bytes. Refuses nothing: quantised.py calls it where tokens
   and dim are at most 4096, for which there is room on the stack. */
void EXPORT(kv_scores)(long count, const uint64_t *planes, long heads, long tokens, long dim, long bits, const void *query,
                       long rows, int brief, float scaling, float *out, long total, long at, int threads)
{
    const struct strips of = strips_of(tokens, dim, bits, 1);
    const struct strip_scoring s = {{query, dim, brief}, rows, scaling, out, total};
    const long strips = heads * of.strips;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long number = 0; number < count * strips; number++) {
        const long page = number / strips, strip = number % strips;
        const long token = at + page * tokens + strip % of.strips * of.width;
        if (token < total)
            score_strip(&s, of, (const uint8_t *)planes[page] + strip * of.size, strip / of.strips, token);
    }
}

/* Adds to out [heads * rows, dim] the probabilities [heads * rows, total], from column `at` to the last token or column,
   times the values [heads, tokens, dim] in each of `count` planes.
   Takes: pages as long as value_bytes, with any bytes. Refuses nothing, as above. */
void EXPORT(kv_weigh)(long count, const uint64_t *planes, long heads, long tokens, long dim, long bits,
                      const void *probabilities, long rows, int brief, float *out, long total, long at, int threads)
{
    const struct strips of = strips_of(tokens, dim, bits, 0);
    const struct strip_weighing w = {{probabilities, total, brief}, rows, out};
    const long strips = heads * of.strips;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long part = 0; part < threads; part++)
        for (long page = 0; page < count && at + page * tokens < total; page++)
            for (long strip = strips * part / threads; strip < strips * (part + 1) / threads; strip++)
                weigh_strip(&w, of, (const uint8_t *)planes[page] + strip * of.size, strip / of.strips,
                            strip % of.strips * of.width, at + page * tokens);
}

/* out [heads, tokens, dim], bfloat16 (brief) or float32.
   Takes: a page as long as key_bytes or value_bytes, with any bytes. Refuses nothing, as above. */
void EXPORT(kv_decode)(const void *plane, long heads, long tokens, long dim, long bits, int of_keys, void *out, int brief,
                       int threads)
{
    const struct strips of = strips_of(tokens, dim, bits, of_keys);
    /* Steps from one number of a row to the next, and from one row to the next. */
    const long step = of_keys ? dim : 1, stride = of_keys ? 1 : dim;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long number = 0; number < heads * of.strips; number++) {
        float numbers[of.inner * STRIP];
        decode_strip(of, (const uint8_t *)plane + number * of.size, numbers);
        const long first = number % of.strips * of.width, there = fewer(of.along - first, of.width);
        const long to = number / of.strips * tokens * dim + first * step;
        for (long i = 0; i < of.inner; i++)
            for (long j = 0; j < there; j++) {
                const float value = numbers[i * STRIP + j];
                if (brief)
                    ((uint16_t *)out)[to + i * stride + j * step] = rounded(value);
                else
                    ((float *)out)[to + i * stride + j * step] = value;
            }
    }
}

#undef STRIP
