/* Kernels of kv_quantised.c for one kind of processor. Before the include, NAME(x) makes separate names, LANES is
   the number of float32 numbers in a register, MOST the number of rows in one pass, and NAME(words) a function that
   makes LANES integers of as many bytes. */

#define PARTS (WIDEST / LANES) /* registers that hold a row of a strip */
#define INLINE static inline __attribute__((always_inline))

/* A row of a strip: its first half in the first half of the registers. */
INLINE void NAME(unpack)(const int bits, const uint8_t *row, NAME(Floats) out[PARTS])
{
#pragma GCC unroll 8
    for (int p = 0; p < PARTS; p++) {
        NAME(Words) words;
        if (bits == 8)
            words = NAME(words)(row + p * LANES);
        else if (p < PARTS / 2)
            words = NAME(words)(row + p * LANES) & 15;
        else
            words = NAME(words)(row + (p - PARTS / 2) * LANES) >> 4;
        out[p] = __builtin_convertvector(words, NAME(Floats));
    }
}

/* Rounds to bfloat16, the nearest, ties to even, and back. */
INLINE NAME(Floats) NAME(nearest)(NAME(Floats) numbers)
{
    const NAME(Words) bits = (NAME(Words))numbers, none = numbers != numbers;
    const NAME(Words) near = (bits + 0x7fff + ((bits >> 16) & 1)) & (int32_t)0xffff0000;
    return (NAME(Floats))((none & bits) | (~none & near));
}

/* The number of a row in the first lane of a register. */
INLINE long NAME(first_in)(int part, struct layout layout)
{
    return part < PARTS / 2 ? part * LANES : layout.half + (part - PARTS / 2) * LANES;
}

/* The number of its lanes with numbers of a row that has `there`. */
INLINE long NAME(lanes_in)(int part, struct layout layout, long there)
{
    const long first = NAME(first_in)(part, layout), end = part < PARTS / 2 ? smaller(there, layout.half) : there;
    return end - first < 0 ? 0 : smaller(end - first, LANES);
}

INLINE NAME(Floats) NAME(load)(const float *from, long count)
{
    NAME(Floats) numbers = {0};
    if (count == LANES)
        memcpy(&numbers, from, sizeof numbers);
    else
        memcpy(&numbers, from, 4 * count);
    return numbers;
}

INLINE void NAME(store)(NAME(Floats) numbers, float *to, long count)
{
    if (count == LANES)
        memcpy(to, &numbers, sizeof numbers);
    else
        memcpy(to, &numbers, 4 * count);
}

/* factors[i] = x[i] * scale[i] for `count` rows of a strip. Returns the contribution of their zeros. */
INLINE float NAME(fold_numbers)(const int brief, const void *x, const loose *scales, const loose *zeros,
                                float offset, long count, float *factors)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < count; i++) {
        const float number = brief ? widened(((const uint16_t *)x)[i]) : ((const float *)x)[i];
        const float scale = widened(scales[i]);
        factors[i] = number * scale;
        sum += number * (widened(zeros[i]) - offset * scale);
    }
    return sum;
}

INLINE float NAME(fold)(struct inputs x, long at, struct layout layout, const uint8_t *strip, long count,
                        float *factors)
{
    const loose *scales = (const loose *)(strip + layout.inner * layout.row), *zeros = scales + layout.inner;
    const float offset = offset_of(layout);
    /* Two loops, because a loop with the condition inside is not vectorised. */
    return x.brief ? NAME(fold_numbers)(1, (const uint16_t *)x.numbers + at, scales, zeros, offset, count, factors)
                   : NAME(fold_numbers)(0, (const float *)x.numbers + at, scales, zeros, offset, count, factors);
}

/* Adds to sum[r], for `rows` rows of x from number `first` on, that row times a strip: the `count` numbers of each
   from `at` on. */
INLINE void NAME(multiply)(const int rows, const int bits, struct inputs x, long first, long at, long count,
                           struct layout layout, const uint8_t *strip, float *factors, NAME(Floats) sum[][PARTS])
{
    float rest[MOST];
    /* Prefetches the next strip. Its scales lie behind its numbers. */
    for (long i = 0; i < 4 * layout.inner; i += LINE)
        __builtin_prefetch(strip + 2 * layout.size - i - 1);
    for (int r = 0; r < rows; r++)
        rest[r] = NAME(fold)(x, (first + r) * x.stride + at, layout, strip, count, factors + r * layout.inner);
    const uint8_t *row = strip;
    for (long i = 0; i < count; i++, row += layout.row) {
        NAME(Floats) numbers[PARTS];
        NAME(unpack)(bits, row, numbers);
        __builtin_prefetch(row + layout.size);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int p = 0; p < PARTS; p++)
                sum[r][p] += numbers[p] * factors[r * layout.inner + i];
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int p = 0; p < PARTS; p++)
            sum[r][p] += rest[r];
}

INLINE void NAME(score_rows)(const int rows, const int bits, struct scoring s, struct layout layout,
                             const uint8_t *strip, long first, long at, float *factors)
{
    NAME(Floats) sum[MOST][PARTS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int p = 0; p < PARTS; p++)
            sum[r][p] = (NAME(Floats)){0};
    NAME(multiply)(rows, bits, s.query, first, 0, layout.inner, layout, strip, factors, sum);
    const long there = smaller(s.total - at, layout.width);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int p = 0; p < PARTS; p++) {
            const NAME(Floats) exact = sum[r][p], plain = s.query.brief ? NAME(nearest)(exact) : exact;
            const NAME(Floats) score = plain * s.scaling;
            NAME(store)(s.query.brief ? NAME(nearest)(score) : score,
                        s.out + (first + r) * s.total + at + NAME(first_in)(p, layout),
                        NAME(lanes_in)(p, layout, there));
        }
}

INLINE void NAME(weigh_rows)(const int rows, const int bits, struct weighing w, struct layout layout,
                             const uint8_t *strip, long first, long at, long channel, float *factors)
{
    const long there = smaller(layout.along - channel, layout.width);
    const long count = smaller(w.probabilities.stride - at, layout.inner);
    NAME(Floats) sum[MOST][PARTS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int p = 0; p < PARTS; p++)
            sum[r][p] = NAME(load)(w.out + (first + r) * layout.along + channel + NAME(first_in)(p, layout),
                                   NAME(lanes_in)(p, layout, there));
    NAME(multiply)(rows, bits, w.probabilities, first, at, count, layout, strip, factors, sum);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int p = 0; p < PARTS; p++)
            NAME(store)(sum[r][p], w.out + (first + r) * layout.along + channel + NAME(first_in)(p, layout),
                        NAME(lanes_in)(p, layout, there));
}

/* ONE(rows, row) for all rows, as many at a time as MOST allows. */
#define IN_PASSES(count, ONE)                                                                                          \
    long row = 0;                                                                                                      \
    for (; row + MOST <= (count); row += MOST)                                                                         \
        ONE(MOST, row);                                                                                                \
    for (; MOST > 4 && row + 4 <= (count); row += 4)                                                                   \
        ONE(4, row);                                                                                                   \
    for (; MOST > 2 && row + 2 <= (count); row += 2)                                                                   \
        ONE(2, row);                                                                                                   \
    for (; row < (count); row++)                                                                                       \
        ONE(1, row);

/* The scores of one strip of keys, whose first token is number `at`. */
INLINE void NAME(score_bits)(const int bits, struct scoring s, struct layout layout, const uint8_t *strip, long head,
                             long at)
{
    float factors[MOST * layout.inner];
#define ONE(N, row) NAME(score_rows)(N, bits, s, layout, strip, head * s.rows + row, at, factors)
    IN_PASSES(s.rows, ONE)
#undef ONE
}

static void NAME(score)(struct scoring s, struct layout layout, const uint8_t *strip, long head, long at)
{
    if (layout.bits == 8)
        NAME(score_bits)(8, s, layout, strip, head, at);
    else
        NAME(score_bits)(4, s, layout, strip, head, at);
}

/* Adds one strip of values from channel `channel` on. The first token of its page is number `at`. */
INLINE void NAME(weigh_bits)(const int bits, struct weighing w, struct layout layout, const uint8_t *strip, long head,
                             long channel, long at)
{
    float factors[MOST * layout.inner];
#define ONE(N, row) NAME(weigh_rows)(N, bits, w, layout, strip, head * w.rows + row, at, channel, factors)
    IN_PASSES(w.rows, ONE)
#undef ONE
}

static void NAME(weigh)(struct weighing w, struct layout layout, const uint8_t *strip, long head, long channel, long at)
{
    if (layout.bits == 8)
        NAME(weigh_bits)(8, w, layout, strip, head, channel, at);
    else
        NAME(weigh_bits)(4, w, layout, strip, head, channel, at);
}

/* Decodes the numbers of a strip, in their order: out [inner, WIDEST]. */
static void NAME(decode)(struct layout layout, const uint8_t *strip, float *out)
{
    const loose *scales = (const loose *)(strip + layout.inner * layout.row), *zeros = scales + layout.inner;
    const float offset = offset_of(layout);
    for (long i = 0; i < layout.inner; i++, out += WIDEST) {
        const float scale = widened(scales[i]), zero = widened(zeros[i]);
        NAME(Floats) numbers[PARTS];
        NAME(unpack)((int)layout.bits, strip + i * layout.row, numbers);
        for (int p = 0; p < PARTS; p++)
            NAME(store)((numbers[p] - offset) * scale + zero, out + NAME(first_in)(p, layout),
                        NAME(lanes_in)(p, layout, layout.width));
    }
}

#undef IN_PASSES
#undef PARTS
#undef INLINE
