/* Scores and weighted values of one page in vectors of WIDTH bytes, for any processor with such vectors. Included
   once for each WIDTH. NAME(x) makes separate names. */

typedef float NAME(floats) __attribute__((vector_size(WIDTH), aligned(4), may_alias));
typedef uint32_t NAME(words) __attribute__((vector_size(WIDTH)));
typedef uint16_t NAME(halves) __attribute__((vector_size(WIDTH / 2), aligned(2), may_alias));

#define WITHIN (WIDTH / 4) /* numbers in a vector */
#define ROWS 4             /* rows that are computed at a time */

/* The numbers from `at`, bfloat16 or float32. */
static inline __attribute__((always_inline)) NAME(floats) NAME(loaded)(const void *from, long at, const int brief)
{
    if (!brief)
        return *(const NAME(floats) *)((const float *)from + at);
    const NAME(halves) halves = *(const NAME(halves) *)((const uint16_t *)from + at);
    return (NAME(floats))(__builtin_convertvector(halves, NAME(words)) << 16);
}

static inline __attribute__((always_inline)) void NAME(score_rows)(const struct scoring *now, const int brief,
                                                                   const int rows, const float *columns, long row,
                                                                   long token, long there)
{
    NAME(floats) sums[ROWS];
    for (int r = 0; r < rows; r++)
        sums[r] = (NAME(floats)){0};
    for (long d = 0; d < now->dim; d++) {
        const NAME(floats) column = *(const NAME(floats) *)(columns + d * WITHIN);
        for (int r = 0; r < rows; r++)
            sums[r] += column * number_at(now->query, (row + r) * now->dim + d, brief);
    }
    for (int r = 0; r < rows; r++)
        for (long lane = 0; lane < there; lane++)
            now->out[(row + r) * now->stride + token + lane] = scaled(sums[r][lane], now->scaling, brief);
}

static inline __attribute__((always_inline)) void NAME(score_numbers)(const struct scoring *now, const int brief)
{
    float columns[MOST_DIM * WITHIN];
    for (long token = 0; token < now->tokens; token += WITHIN) {
        const long there = smaller(WITHIN, now->tokens - token);
        for (long lane = 0; lane < WITHIN; lane++)
            for (long d = 0; d < now->dim; d++)
                columns[d * WITHIN + lane] = lane < there ? number_at(now->keys, (token + lane) * now->dim + d, brief) : 0;
        long row = 0;
        for (; row + ROWS <= now->rows; row += ROWS)
            NAME(score_rows)(now, brief, ROWS, columns, row, token, there);
        for (; row < now->rows; row++)
            NAME(score_rows)(now, brief, 1, columns, row, token, there);
    }
}

static void NAME(score)(const struct scoring *now)
{
    if (now->brief)
        NAME(score_numbers)(now, 1);
    else
        NAME(score_numbers)(now, 0);
}

static inline __attribute__((always_inline)) void NAME(weigh_rows)(const struct weighing *now, const int brief,
                                                                   const int rows, long row, long column)
{
    NAME(floats) sums[ROWS];
    for (int r = 0; r < rows; r++)
        sums[r] = *(const NAME(floats) *)(now->out + (row + r) * now->dim + column);
    for (long t = 0; t < now->tokens; t++) {
        const NAME(floats) values = NAME(loaded)(now->values, t * now->dim + column, brief);
        for (int r = 0; r < rows; r++)
            sums[r] += values * number_at(now->weights, (row + r) * now->stride + t, brief);
    }
    for (int r = 0; r < rows; r++)
        *(NAME(floats) *)(now->out + (row + r) * now->dim + column) = sums[r];
}

static inline __attribute__((always_inline)) void NAME(weigh_numbers)(const struct weighing *now, const int brief)
{
    for (long row = 0; row < now->rows; row += ROWS) {
        const long there = smaller(ROWS, now->rows - row);
        long column = now->first;
        for (; column + WITHIN <= now->last; column += WITHIN)
            if (there == ROWS)
                NAME(weigh_rows)(now, brief, ROWS, row, column);
            else
                for (long r = 0; r < there; r++)
                    NAME(weigh_rows)(now, brief, 1, row + r, column);
        for (; column < now->last; column++)
            for (long r = row; r < row + there; r++)
                for (long t = 0; t < now->tokens; t++)
                    now->out[r * now->dim + column] += number_at(now->values, t * now->dim + column, brief) *
                                                       number_at(now->weights, r * now->stride + t, brief);
    }
}

static void NAME(weigh)(const struct weighing *now)
{
    if (now->brief)
        NAME(weigh_numbers)(now, 1);
    else
        NAME(weigh_numbers)(now, 0);
}

#undef WITHIN
#undef ROWS
