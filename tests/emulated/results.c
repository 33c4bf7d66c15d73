/* Results of each kernel of one LEVEL, for inputs that are the same on every machine. compare.py reads them.

   A result is a line "NAME equal BYTES" or "NAME near NUMBERS SLACK SHARE", and its bytes, or its float32 numbers: those
   of two levels may differ by SLACK + SHARE * number. SLACK is the rounding of a float32 sum: terms * 2^-24 times the
   greatest sum of sizes, twice, for two orders of summation. SHARE is that of bfloat16 numbers. */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JOINED(NAME, AT) penstock_##NAME##_##AT
#define AT_LEVEL(NAME, AT) JOINED(NAME, AT)
#define KERNEL(NAME) AT_LEVEL(NAME, LEVEL)
#define TEXT_OF(AT) #AT
#define TEXT(AT) TEXT_OF(AT)

int penstock_runs(const char *);
void KERNEL(add_weighted)(long, const uint64_t *, const float *, const int64_t *, uint16_t *, long, int);
void KERNEL(products)(long, const uint64_t *, const uint64_t *, const uint64_t *, long, long, long, long, void *,
                      const uint64_t *, int);
void KERNEL(turned_products)(long, const uint64_t *, const uint64_t *, const uint64_t *, long, long, long, long,
                             const uint64_t *, int);
void KERNEL(products_int8)(long, const uint64_t *, const uint64_t *, const uint64_t *, long, long, long, void *, int);
void KERNEL(products_int4)(long, const uint64_t *, const uint64_t *, const uint64_t *, long, long, long, long, void *, int);
void KERNEL(products_nested)(long, const uint64_t *, const uint64_t *, const uint64_t *, long, long, long, long, void *, int);
void KERNEL(block_products)(long, const uint64_t *, const uint64_t *, const uint64_t *, long, long, long, const int64_t *,
                            float *, int);
void KERNEL(decode_int8)(const void *, void *, long, long, long, long, int);
void KERNEL(decode_int4)(const void *, void *, long, long, long, long, long, int);
void KERNEL(decode_nested)(const uint64_t *, uint16_t *, long, long, long, long, int);
void KERNEL(decode_blocks)(const int64_t *, const uint8_t *, long, long, long, void *, int, int);
void KERNEL(quantise_int8)(const float *, const float *, int8_t *, uint16_t *, long, long, const float *, int, int);
void KERNEL(quantise_int4)(const float *, const float *, uint8_t *, uint16_t *, uint16_t *, long, long, long, const float *,
                           int, int, int);
void KERNEL(nest)(const float *, const int8_t *, const uint16_t *, const float *, const uint64_t *, long, long, long, long, int);
void KERNEL(scores)(long, const uint64_t *, const void *, float *, long, long, long, long, long, long, float, int, int);
void KERNEL(weigh)(long, const uint64_t *, const void *, float *, long, long, long, long, long, long, int, int);
void KERNEL(page_masses)(const float *, long, long, long, long, long, float *);
void KERNEL(kv_scores)(long, const uint64_t *, long, long, long, long, const void *, long, int, float, float *, long, long, int);
void KERNEL(kv_weigh)(long, const uint64_t *, long, long, long, long, const void *, long, int, float *, long, long, int);
void KERNEL(kv_decode)(const void *, long, long, long, long, int, void *, int, int);
void KERNEL(bounds)(const uint8_t *, long, long, const float *, long, long, long, long, int, float, float, float, void *,
                    float *, float *, int);

enum { ROWS = 33, COLUMNS = 140, TOKENS = 3, HEADS = 2, PAGE = 64, DIM = 80, QUERIES = 5, PAGES = 3 };
static const float WIDTHS[] = {1.02f, 0.98f, 0.94f, 0.9f, 0.86f, 0.82f};

/* ---- inputs ---- */

static uint64_t state = 1;

static uint32_t chance(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

/* Between -1 and 1. */
static float number(void) { return (float)(int32_t)chance() * 0x1p-31f; }

static uint16_t brief(float from)
{
    uint32_t bits;
    memcpy(&bits, &from, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static float wide(uint16_t from)
{
    const uint32_t bits = (uint32_t)from << 16;
    float made;
    memcpy(&made, &bits, sizeof made);
    return made;
}

static void *room(size_t bytes)
{
    void *made = aligned_alloc(64, (bytes + 127) / 64 * 64);
    if (!made)
        abort();
    return memset(made, 0, bytes);
}

static float *numbers(long count)
{
    float *made = room(4 * (size_t)count);
    for (long i = 0; i < count; i++)
        made[i] = number();
    return made;
}

static uint16_t *briefs(long count)
{
    uint16_t *made = room(2 * (size_t)count);
    for (long i = 0; i < count; i++)
        made[i] = brief(number());
    return made;
}

static uint8_t *bytes(long count)
{
    uint8_t *made = room((size_t)count);
    for (long i = 0; i < count; i++)
        made[i] = (uint8_t)chance();
    return made;
}

/* ---- results ---- */

static void equal(const char *name, const void *from, long size)
{
    printf("%s equal %ld\n", name, size);
    fwrite(from, 1, (size_t)size, stdout);
}

/* Numbers that are sums of `terms` products below 1, times `factor`; rounded to bfloat16 if so. */
static void near(const char *name, const float *from, long count, long terms, float factor, int rounded)
{
    const double slack = (double)factor * (double)(terms * terms) * 0x1p-23;
    printf("%s near %ld %.9g %.9g\n", name, count, slack, rounded ? 0x1p-7 : 0.0);
    fwrite(from, 4, (size_t)count, stdout);
}

static void near_brief(const char *name, const uint16_t *from, long count, long terms, float factor)
{
    float *made = room(4 * (size_t)count);
    for (long i = 0; i < count; i++)
        made[i] = wide(from[i]);
    near(name, made, count, terms, factor, 1);
}

/* ---- weights ---- */

static void weighted_sums(void)
{
    uint16_t *to = briefs(4 * COLUMNS), *from = briefs(3 * COLUMNS);
    const uint64_t places[3] = {(uint64_t)from, (uint64_t)(from + COLUMNS), (uint64_t)(from + 2 * COLUMNS)};
    const int64_t rows[3] = {2, 0, 3};
    KERNEL(add_weighted)(3, places, numbers(3), rows, to, COLUMNS, 1);
    equal("add_weighted", to, 2 * 4 * COLUMNS);
}

static void bfloat16_products(void)
{
    const uint64_t w = (uint64_t)briefs(ROWS * COLUMNS), x = (uint64_t)briefs(TOKENS * COLUMNS);
    uint16_t *out = room(2 * TOKENS * ROWS);
    const uint64_t to = (uint64_t)out;
    KERNEL(products)(1, &w, &x, &to, TOKENS, ROWS, COLUMNS, 0, room(4 * TOKENS * (COLUMNS + 64)), NULL, 1);
    near_brief("products", out, TOKENS * ROWS, COLUMNS, 1);
    KERNEL(turned_products)(1, &w, &x, &to, TOKENS, ROWS, COLUMNS, -3, NULL, 1);
    near_brief("turned_products", out, TOKENS * ROWS, COLUMNS, 1);
}

static void weights_of_8(void)
{
    float *x = numbers(ROWS * COLUMNS);
    const long at = (ROWS * COLUMNS + 63) / 64 * 64;
    uint8_t *plane = room((size_t)at + 2 * ROWS);
    KERNEL(quantise_int8)(x, numbers(COLUMNS), (int8_t *)plane, (uint16_t *)(plane + at), ROWS, COLUMNS, WIDTHS, 6, 1);
    equal("quantise_int8", plane, at + 2 * ROWS);
    uint16_t *decoded = room(2 * ROWS * COLUMNS), *out = room(2 * TOKENS * ROWS);
    KERNEL(decode_int8)(plane, decoded, ROWS, COLUMNS, 0, ROWS, 1);
    equal("decode_int8", decoded, 2 * ROWS * COLUMNS);
    const uint64_t w = (uint64_t)plane, in = (uint64_t)briefs(TOKENS * COLUMNS), to = (uint64_t)out;
    KERNEL(products_int8)(1, &w, &in, &to, TOKENS, ROWS, COLUMNS, room(4 * TOKENS * (COLUMNS + 64)), 1);
    near_brief("products_int8", out, TOKENS * ROWS, COLUMNS, 1.2f);
}

static void weights_of_4(void)
{
    enum { GROUP = 64, WHOLE = (COLUMNS + GROUP - 1) / GROUP * GROUP, HIGH = (ROWS + 63) / 64 * 64 };
    float *weights = numbers(WHOLE);
    for (long i = 0; i < WHOLE; i++)
        weights[i] = i < COLUMNS ? fabsf(weights[i]) + 0.01f : 0;
    uint8_t *codes = room(ROWS * WHOLE);
    uint16_t *scales = room(2 * ROWS * WHOLE / GROUP), *zeros = room(2 * ROWS * WHOLE / GROUP);
    KERNEL(quantise_int4)(numbers(ROWS * COLUMNS), weights, codes, scales, zeros, ROWS, COLUMNS, GROUP, WIDTHS, 6, 4, 1);
    equal("quantise_int4 numbers", codes, ROWS * WHOLE);
    equal("quantise_int4 scales", scales, 2 * ROWS * WHOLE / GROUP);
    equal("quantise_int4 zeros", zeros, 2 * ROWS * WHOLE / GROUP);
    /* A plane of any numbers, with small scales and zeros behind. */
    const long half = HIGH * WHOLE / 2;
    uint8_t *plane = bytes(half + HIGH * WHOLE / GROUP * 4);
    for (long i = 0; i < HIGH * WHOLE / GROUP * 2; i++)
        ((uint16_t *)(plane + half))[i] = brief(number() / 16);
    uint16_t *decoded = room(2 * ROWS * COLUMNS), *out = room(2 * TOKENS * ROWS);
    KERNEL(decode_int4)(plane, decoded, ROWS, COLUMNS, GROUP, 0, ROWS, 1);
    near_brief("decode_int4", decoded, ROWS * COLUMNS, 1, 1);
    const uint64_t w = (uint64_t)plane, in = (uint64_t)briefs(TOKENS * COLUMNS), to = (uint64_t)out;
    KERNEL(products_int4)(1, &w, &in, &to, TOKENS, ROWS, COLUMNS, GROUP, room(8 * TOKENS * (WHOLE + 64)), 1);
    near_brief("products_int4", out, TOKENS * ROWS, COLUMNS, 1);
}

/* `most` planes: 2 of nested, 3 of stacked matrices. */
static void nested_weights(long most)
{
    const long groups = (COLUMNS + 31) / 32, tiles = (ROWS + 15) / 16, split = most == 3;
    const long body = (COLUMNS + (split ? 15 : 7)) / (split ? 16 : 8) * 64;
    const long head = (32 * (groups + 1) + (split ? groups * 8 : 0) + 63) / 64 * 64;
    const long lengths[3] = {tiles * (head + body), tiles * body, tiles * body * 2};
    float *x = numbers(ROWS * COLUMNS), *counts = numbers(groups * 32);
    int8_t *integers = room(ROWS * COLUMNS);
    uint16_t *scales = room(2 * ROWS), *decoded = room(2 * ROWS * COLUMNS), *out = room(2 * TOKENS * ROWS);
    for (long i = 0; i < groups * 32; i++)
        counts[i] = i < COLUMNS ? fabsf(counts[i]) : 0;
    KERNEL(quantise_int8)(x, counts, integers, scales, ROWS, COLUMNS, WIDTHS, 6, 1);
    uint64_t planes[3];
    for (long i = 0; i < most; i++)
        planes[i] = (uint64_t)room((size_t)lengths[split ? i : 2 * i == 2 ? 1 : i]);
    KERNEL(nest)(x, integers, scales, counts, planes, ROWS, COLUMNS, 0, most, 1);
    for (long i = 0; i < most; i++)
        equal(split ? "nest stacked" : "nest nested", (void *)planes[i], lengths[i]);
    const uint64_t in = (uint64_t)briefs(TOKENS * COLUMNS), to = (uint64_t)out;
    for (long there = 1; there <= most; there++) {
        uint64_t some[3] = {0};
        memcpy(some, planes, 8 * (size_t)there);
        KERNEL(decode_nested)(some, decoded, COLUMNS, most, 0, ROWS, 1);
        near_brief("decode_nested", decoded, ROWS * COLUMNS, 1, 1);
        KERNEL(products_nested)(1, some, &in, &to, TOKENS, ROWS, COLUMNS, most, room(132 * TOKENS * (groups + 1)), 1);
        near_brief("products_nested", out, TOKENS * ROWS, COLUMNS, 1.2f);
    }
}

/* Blocks of 32 numbers of 8 bits, and of 4, as GGUF has them. */
static void block_weights(int format, long size)
{
    enum { K = 128 };
    const long width = K / 32 * size;
    const int64_t shape[10] = {format, 0, 0, 0, width, 0, 0, 1, 1, 0};
    uint8_t *plane = bytes(ROWS * width);
    for (long i = 0; i < ROWS * K / 32; i++) { /* a scale of 1 / 256 */
        plane[i * size] = 0;
        plane[i * size + 1] = 0x1c;
    }
    float *decoded = room(4 * ROWS * K);
    uint16_t *out = room(2 * TOKENS * ROWS);
    KERNEL(decode_blocks)(shape, plane, 0, ROWS, K, decoded, 0, 1);
    equal("decode_blocks", decoded, 4 * ROWS * K);
    const uint64_t w = (uint64_t)plane, in = (uint64_t)briefs(TOKENS * K), to = (uint64_t)out;
    KERNEL(block_products)(1, &w, &in, &to, TOKENS, ROWS, K, shape, room(4 * TOKENS * (K + K / 16)), 1);
    near_brief("block_products", out, TOKENS * ROWS, K, 1);
}

/* ---- pages ---- */

static void attention(int is_brief)
{
    enum { END = PAGES * PAGE - 5 };
    uint64_t pages[PAGES];
    for (int i = 0; i < PAGES; i++)
        pages[i] = is_brief ? (uint64_t)briefs(HEADS * PAGE * DIM) : (uint64_t)numbers(HEADS * PAGE * DIM);
    const void *query = is_brief ? (void *)briefs(HEADS * QUERIES * DIM) : (void *)numbers(HEADS * QUERIES * DIM);
    const void *shares = is_brief ? (void *)briefs(HEADS * QUERIES * END) : (void *)numbers(HEADS * QUERIES * END);
    float *out = room(4 * HEADS * QUERIES * END), *sums = numbers(HEADS * QUERIES * DIM);
    KERNEL(scores)(PAGES, pages, query, out, HEADS, QUERIES, PAGE, DIM, 0, END, 0.3f, is_brief, 1);
    near("scores", out, HEADS * QUERIES * END, DIM, 1, is_brief);
    KERNEL(weigh)(PAGES, pages, shares, sums, HEADS, QUERIES, PAGE, DIM, 0, END, is_brief, 1);
    near("weigh", sums, HEADS * QUERIES * DIM, END, 1, 0);
    float *logs = room(4 * HEADS * QUERIES * PAGES);
    const float *given = numbers(HEADS * QUERIES * END);
    KERNEL(page_masses)(given, HEADS * QUERIES, END, PAGES, PAGE, 5, logs);
    near("page_masses", logs, HEADS * QUERIES * PAGES, 8, 1, 0);
}

static void quantised_pages(long bits, int of_keys)
{
    enum { END = PAGE - 3 };
    const long along = of_keys ? PAGE : DIM, inner = of_keys ? DIM : PAGE, strips = (along + 31) / 32;
    const long share = (along + strips - 1) / strips, row = (share + share % 2) * bits / 8, size = inner * (row + 4);
    uint8_t *page = bytes(HEADS * strips * size + 64);
    for (long i = 0; i < HEADS * strips; i++)
        for (long j = 0; j < 2 * inner; j++) {
            const uint16_t some = brief(number() / (j < inner ? 256 : 2));
            memcpy(page + i * size + inner * row + 2 * j, &some, 2);
        }
    const uint64_t pages[1] = {(uint64_t)page};
    float *decoded = room(4 * HEADS * PAGE * DIM);
    KERNEL(kv_decode)(page, HEADS, PAGE, DIM, bits, of_keys, decoded, 0, 1);
    equal("kv_decode", decoded, 4 * HEADS * PAGE * DIM);
    if (of_keys) {
        float *out = room(4 * HEADS * QUERIES * END);
        KERNEL(kv_scores)(1, pages, HEADS, PAGE, DIM, bits, briefs(HEADS * QUERIES * DIM), QUERIES, 1, 0.3f, out, END, 0, 1);
        near("kv_scores", out, HEADS * QUERIES * END, DIM, 2, 1);
    } else {
        float *sums = numbers(HEADS * QUERIES * DIM);
        KERNEL(kv_weigh)(1, pages, HEADS, PAGE, DIM, bits, briefs(HEADS * QUERIES * END), QUERIES, 1, sums, END, 0, 1);
        near("kv_weigh", sums, HEADS * QUERIES * DIM, PAGE, 2, 0);
    }
}

static void bounds_of_pages(int bits, float softcap)
{
    const long at = (8 + 2 * DIM + 4 * PAGE + 63) / 64 * 64, size = at + PAGE * DIM * bits / 8, stride = HEADS * size;
    uint8_t *summaries = bytes(PAGES * stride);
    for (long i = 0; i < PAGES * HEADS; i++) {
        uint8_t *to = summaries + i * size;
        const int32_t count = i == 1 ? 0 : PAGE - (int32_t)i;
        const float reach = 3;
        memcpy(to, &count, 4);
        memcpy(to + 4, &reach, 4);
        for (long j = 0; j < DIM + 2 * PAGE; j++) {
            const uint16_t some = brief(j < DIM ? number() : (fabsf(number()) + 0.1f) / 128);
            memcpy(to + 8 + 2 * j, &some, 2);
        }
    }
    float *lower = room(4 * HEADS * QUERIES * PAGES), *upper = room(4 * HEADS * QUERIES * PAGES);
    KERNEL(bounds)(summaries, stride, PAGES, numbers(HEADS * QUERIES * DIM), HEADS, QUERIES, PAGE, DIM, bits, 0.3f, softcap,
                   0.001f, room(HEADS * QUERIES * 4096), lower, upper, 1);
    near("bounds lower", lower, HEADS * QUERIES * PAGES, DIM, 1, 0);
    near("bounds upper", upper, HEADS * QUERIES * PAGES, DIM, 1, 0);
}

int main(void)
{
    static const char *const levels[] = {"plain", "avx2", "avx512", "neon"};
    printf("runs");
    for (int i = 0; i < 4; i++)
        if (penstock_runs(levels[i]))
            printf(" %s", levels[i]);
    printf("\n");
    if (!penstock_runs(TEXT(LEVEL)))
        return 3;
    weighted_sums();
    bfloat16_products();
    weights_of_8();
    weights_of_4();
    nested_weights(2);
    nested_weights(3);
    block_weights(0, 34);
    block_weights(1, 18);
    for (int is_brief = 0; is_brief < 2; is_brief++)
        attention(is_brief);
    for (long bits = 4; bits <= 8; bits += 4)
        for (int of_keys = 0; of_keys < 2; of_keys++)
            quantised_pages(bits, of_keys);
    for (int bits = 4; bits <= 8; bits += 4)
        for (int capped = 0; capped < 2; capped++)
            bounds_of_pages(bits, capped ? 5 : 0);
    return 0;
}
