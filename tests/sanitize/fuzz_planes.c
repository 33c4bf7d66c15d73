/* A target of libFuzzer for each format: dimensions and a plane from the input, whatever it holds, to the kernels.

   Planes and results have exactly the bytes that the contracts in kernels/csrc promise, so the address sanitizer sees
   every access outside of them. Where a kernel has several levels of instructions, all that this processor has must
   give the same. fuzz.py compiles this once for each TARGET,
   and links only the kernels of that. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef TARGET
#define TARGET lossless
#endif

int penstock_lossless_first_damaged(const uint8_t *, long, long, const uint8_t *, long, long, int);
int penstock_first_left_out(const uint8_t *, long, uint8_t *);
int penstock_runs(const char *);

#if defined(__x86_64__)
#define LEVELS(DO) DO(plain) DO(avx2) DO(avx512)
#elif defined(__aarch64__)
#define LEVELS(DO) DO(plain) DO(neon)
#else
#define LEVELS(DO) DO(plain)
#endif

#define DECLARED(AT)                                                                                                   \
    void penstock_kv_scores_##AT(long, const uint64_t *, long, long, long, long, const void *, long, int, float,       \
                                 float *, long, long, int);                                                            \
    void penstock_kv_weigh_##AT(long, const uint64_t *, long, long, long, long, const void *, long, int, float *,      \
                                long, long, int);                                                                      \
    void penstock_kv_decode_##AT(const void *, long, long, long, long, int, void *, int, int);                         \
    int penstock_takes_order_##AT(long);                                                                               \
    int penstock_lossless_decode_##AT(const uint8_t *, long, long, long, long, long, uint16_t *, int);                 \
    int penstock_lossless_products_##AT(long, const uint64_t *, const uint64_t *, const uint64_t *, long, long, long,  \
                                        long, void *, const uint64_t *, int);                                          \
    void penstock_decode_blocks_##AT(const int64_t *, const uint8_t *, long, long, long, void *, int, int);            \
    void penstock_block_products_##AT(long, const uint64_t *, const uint64_t *, const uint64_t *, long, long, long,    \
                                      const int64_t *, float *, int);                                                  \
    void penstock_decode_nested_##AT(const uint64_t *, uint16_t *, long, long, long, long, int);                       \
    void penstock_products_nested_##AT(long, const uint64_t *, const uint64_t *, const uint64_t *, long, long, long,   \
                                       long, void *, int);                                                             \
    void penstock_decode_int8_##AT(const void *, void *, long, long, long, long, int);                                 \
    void penstock_products_int8_##AT(long, const uint64_t *, const uint64_t *, const uint64_t *, long, long, long,     \
                                     void *, int);                                                                     \
    void penstock_decode_int4_##AT(const void *, void *, long, long, long, long, long, int);                           \
    void penstock_products_int4_##AT(long, const uint64_t *, const uint64_t *, const uint64_t *, long, long, long,     \
                                     long, void *, int);
LEVELS(DECLARED)

enum { HEAD = 8, FULL = 2 }; /* bytes of an input before its plane; the level with AVX-512 */

typedef struct {
    const uint8_t *head, *plane;
    size_t length;
} input;

#define UNUSED __attribute__((unused)) static /* by other targets */

#define MUST(WHAT)                                                                                                     \
    if (!(WHAT))                                                                                                       \
    abort()

static long ceiling(long a, long b) { return (a + b - 1) / b; }

static long aligned(long size) { return ceiling(size, 64) * 64; }

/* As planes lie in a block. Nothing may be touched behind `bytes`. */
static void *room(long bytes)
{
    void *made = 0;
    MUST(!posix_memalign(&made, 64, bytes ? (size_t)bytes : 1));
    memset(made, 0, (size_t)bytes);
    return made;
}

/* A plane of `bytes` bytes: those of the input, again and again. */
UNUSED uint8_t *plane_of(const input *in, long bytes)
{
    uint8_t *made = room(bytes);
    for (long at = 0; in->length && at < bytes; at += (long)in->length)
        memcpy(made + at, in->plane, (size_t)(bytes - at < (long)in->length ? bytes - at : (long)in->length));
    return made;
}

/* Inputs of a product: small numbers of either sign. */
static uint16_t *inputs_of(long count)
{
    uint16_t *made = room(2 * count);
    for (long i = 0; i < count; i++)
        made[i] = (uint16_t)(0x3f00 + (i % 5 << 4) + (i % 2 << 15));
    return made;
}

/* ---- lossless: any bytes, any length ---- */

/* The product in an order of summation, at each level that has it. */
UNUSED void lossless_product(const uint8_t *plane, long length, long n, long k, const input *in, int good)
{
    const long orders[] = {64, 128, 192, 0, -1, -2}, tokens = 1 + in->head[2] % 4, order = orders[in->head[3] % 6];
    const uint64_t matrix[2] = {(uint64_t)plane, (uint64_t)length};
    uint16_t *x = inputs_of(tokens * k), *out = room(2 * tokens * n);
    void *space = room(4 * tokens * k);
    const uint64_t from = (uint64_t)x, to = (uint64_t)out;
#define PRODUCT(AT)                                                                                                    \
    if (penstock_runs(#AT) && penstock_takes_order_##AT(order))                                                        \
        MUST(penstock_lossless_products_##AT(1, matrix, &from, &to, tokens, n, k, order, space, NULL, 1) || !good);
    LEVELS(PRODUCT)
    free(x), free(out), free(space);
}

UNUSED void lossless(const input *in)
{
    const long n = 16 + in->head[0] % 50, k = 4 * (1 + in->head[1] % 40), tiles = n / 16, length = (long)in->length;
    const long first = in->head[4] % 2 && n >= 32 ? 16 : 0, stop = length - 2 * (n % 16) * k;
    uint8_t *plane = room(length);
    memcpy(plane, in->plane, in->length);
    int good = 0;
    if (stop >= 8 * tiles) {
        const int found = penstock_lossless_first_damaged(plane + 8 * tiles, 8 * tiles, stop, plane, tiles, k, 0);
        for (int level = 1; level <= FULL; level++)
            MUST(found == penstock_lossless_first_damaged(plane + 8 * tiles, 8 * tiles, stop, plane, tiles, k, level));
        good = found == -1;
    }
    uint16_t *plainly = room(2 * (n - first) * k), *out = room(2 * (n - first) * k);
    const int whole = penstock_lossless_decode_plain(plane, length, n, k, first, n - first, plainly, 1);
    MUST(whole || !good);
#define DECODED(AT)                                                                                                    \
    if (penstock_runs(#AT)) {                                                                                          \
        MUST(whole == penstock_lossless_decode_##AT(plane, length, n, k, first, n - first, out, 1));                   \
        MUST(!whole || !memcmp(plainly, out, (size_t)(2 * (n - first) * k)));                                          \
    }
    LEVELS(DECODED)
    if (length >= 8 * tiles)
        lossless_product(plane, length, n, k, in, good);
    free(plane), free(plainly), free(out);
}

/* ---- blocks, with an order of columns or without ---- */

UNUSED void run_blocks(const int64_t shape[10], const input *in, long bytes, long n, long k)
{
    const long rows = 1 + in->head[3] % n, first = n - rows, tokens = 1 + in->head[2] % 4;
    const int as = in->head[4] % 3; /* float32 first */
    uint8_t *plane = plane_of(in, bytes);
    uint16_t *x = inputs_of(tokens * k), *out = room(2 * tokens * n);
    void *numbers = room(rows * k * (as ? 2 : 4));
    float *space = room(4 * tokens * (k + k / 16));
    const uint64_t matrix = (uint64_t)plane, from = (uint64_t)x, to = (uint64_t)out;
#define BLOCKS(AT)                                                                                                     \
    if (penstock_runs(#AT)) {                                                                                          \
        penstock_decode_blocks_##AT(shape, plane, first, rows, k, numbers, as, 1);                                     \
        penstock_block_products_##AT(1, &matrix, &from, &to, tokens, n, k, shape, space, 1);                           \
    }
    LEVELS(BLOCKS)
    free(plane), free(x), free(out), free(numbers), free(space);
}

/* The last part is the order, which says where each number goes. */
UNUSED void ordered(const input *in)
{
    const long n = 1 + in->head[0] % 20, k = 32 * (1 + in->head[1] % 6), group = in->head[5] % 2 ? 32 : k;
    const long scales = aligned(n * k / 2), zeros = aligned(scales + 2 * n * k / group);
    const long order = aligned(zeros + n * k / group), bytes = order + 4 * k;
    const int64_t shape[10] = {10, 0, scales, zeros, k / 2, 2 * k / group, k / group, 1, group, order};
    uint8_t *plane = plane_of(in, bytes), *seen = room(k);
    const int lost = penstock_first_left_out(plane + order, k, seen);
    MUST(-1 <= lost && lost < k);
    free(plane), free(seen);
    run_blocks(shape, in, bytes, n, k);
}

/* Formats of GGUF, MXFP4 and FP8: any bytes are a matrix. */
UNUSED void blocks(const input *in)
{
    static const struct { long numbers, size; } of[] = {{32, 34}, {32, 18}, {32, 20}, {32, 22}, {32, 24}, {256, 144},
                                                        {256, 176}, {256, 210}, {32, 16}, {128, 128}};
    const long kind = in->head[5] % 10, n = 1 + in->head[0] % 20, k = of[kind].numbers * (1 + in->head[1] % 4);
    const long width = k / of[kind].numbers * of[kind].size, scales = aligned(n * width);
    int64_t shape[10] = {kind, 0, 0, 0, width, 0, 0, 1, 1, 0};
    long bytes = n * width;
    if (kind == 8) {
        shape[2] = scales, shape[5] = k / 32;
        bytes = scales + n * k / 32;
    } else if (kind == 9) { /* a scale for 128 columns of each 8 rows */
        shape[2] = scales, shape[5] = 4 * k / 128, shape[7] = 8, shape[8] = 128;
        bytes = scales + ceiling(n, 8) * (4 * k / 128);
    }
    run_blocks(shape, in, bytes, n, k);
}

/* ---- nested, with some planes or all ---- */

UNUSED void nested(const input *in)
{
    const long n = 1 + in->head[0] % 50, k = 1 + in->head[1] % 150, most = 2 + in->head[5] % 2;
    const long there = 1 + in->head[6] % most, tokens = 1 + in->head[2] % 16, tiles = ceiling(n, 16);
    const long groups = ceiling(k, 32), first = n > 16 && in->head[4] % 2 ? 16 : 0;
    const long codes = ceiling(k, most == 3 ? 16 : 8) * 64;
    const long head = aligned(2 * 16 * (groups + 1) + (most == 3 ? groups * 8 : 0));
    const long lengths[3] = {head + codes, codes, 2 * codes};
    uint64_t planes[3] = {0};
    for (long i = 0; i < there; i++)
        planes[i] = (uint64_t)plane_of(in, tiles * lengths[i]);
    uint16_t *x = inputs_of(tokens * k), *out = room(2 * tokens * n), *numbers = room(2 * (n - first) * k);
    void *space = room(tokens * groups * 132);
    const uint64_t from = (uint64_t)x, to = (uint64_t)out;
#define NESTED(AT)                                                                                                     \
    if (penstock_runs(#AT)) {                                                                                          \
        penstock_decode_nested_##AT(planes, numbers, k, most, first, n - first, 1);                                    \
        penstock_products_nested_##AT(1, planes, &from, &to, tokens, n, k, most, space, 1);                            \
    }
    LEVELS(NESTED)
    for (long i = 0; i < there; i++)
        free((void *)planes[i]);
    free(x), free(out), free(numbers), free(space);
}

/* ---- int8 and int4 ---- */

UNUSED void int8(const input *in)
{
    const long n = 1 + in->head[0] % 150, k = 1 + in->head[1] % 150, tokens = 1 + in->head[2] % 17;
    const long first = in->head[3] % n;
    uint8_t *plane = plane_of(in, aligned(n * k) + 2 * n);
    uint16_t *x = inputs_of(tokens * k), *out = room(2 * tokens * n), *numbers = room(2 * (n - first) * k);
    void *space = room(4 * tokens * ceiling(k, 32) * 32);
    const uint64_t matrix = (uint64_t)plane, from = (uint64_t)x, to = (uint64_t)out;
#define INT8(AT)                                                                                                       \
    if (penstock_runs(#AT)) {                                                                                          \
        penstock_decode_int8_##AT(plane, numbers, n, k, first, n - first, 1);                                          \
        penstock_products_int8_##AT(1, &matrix, &from, &to, tokens, n, k, space, 1);                                   \
    }
    LEVELS(INT8)
    free(plane), free(x), free(out), free(numbers), free(space);
}

UNUSED void int4(const input *in)
{
    const long n = 1 + in->head[0] % 150, k = 1 + in->head[1] % 200, tokens = 1 + in->head[2] % 17;
    const long group = 32 << in->head[5] % 3, high = ceiling(n, 64) * 64, wide = ceiling(k, group) * group;
    const long first = n > 64 && in->head[4] % 2 ? 64 : 0;
    uint8_t *plane = plane_of(in, high * wide / 2 + high * wide / group * 4);
    uint16_t *x = inputs_of(tokens * k), *out = room(2 * tokens * n), *numbers = room(2 * (n - first) * k);
    void *space = room(4 * tokens * (wide + wide / group));
    const uint64_t matrix = (uint64_t)plane, from = (uint64_t)x, to = (uint64_t)out;
#define INT4(AT)                                                                                                       \
    if (penstock_runs(#AT)) {                                                                                          \
        penstock_decode_int4_##AT(plane, numbers, n, k, group, first, n - first, 1);                                   \
        penstock_products_int4_##AT(1, &matrix, &from, &to, tokens, n, k, group, space, 1);                            \
    }
    LEVELS(INT4)
    free(plane), free(x), free(out), free(numbers), free(space);
}

/* ---- pages of quantised keys and values ---- */

UNUSED void kv(const input *in)
{
    const long heads = 1 + in->head[6] % 3, tokens = 1 + in->head[0] % 80, dim = 1 + in->head[1] % 150;
    const long rows = 1 + in->head[2] % 9, bits = in->head[5] % 2 ? 8 : 4, total = 1 + in->head[3] % tokens;
    const int brief = in->head[4] % 2, size = brief ? 2 : 4;
    float *scores = room(4 * heads * rows * total), *sums = room(4 * heads * rows * dim);
    void *query = room(size * heads * rows * dim), *shares = room(size * heads * rows * total);
    void *numbers = room(size * heads * tokens * dim);
    for (int of_keys = 0; of_keys < 2; of_keys++) {
        const long along = of_keys ? tokens : dim, inner = of_keys ? dim : tokens, strips = ceiling(along, 32);
        const long width = ceiling(ceiling(along, strips), 2) * 2;
        uint8_t *page = plane_of(in, ceiling(heads * strips * inner * (width * bits / 8 + 4), 4096) * 4096);
        const uint64_t plane = (uint64_t)page;
#define AT_LEVEL(AT)                                                                                                   \
    if (penstock_runs(#AT)) {                                                                                          \
        penstock_kv_decode_##AT(page, heads, tokens, dim, bits, of_keys, numbers, brief, 1);                           \
        if (of_keys)                                                                                                   \
            penstock_kv_scores_##AT(1, &plane, heads, tokens, dim, bits, query, rows, brief, 1, scores, total, 0, 1);  \
        else                                                                                                           \
            penstock_kv_weigh_##AT(1, &plane, heads, tokens, dim, bits, shares, rows, brief, sums, total, 0, 1);       \
    }
        LEVELS(AT_LEVEL)
        free(page);
    }
    free(scores), free(sums), free(query), free(shares), free(numbers);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEAD)
        return -1;
    const input in = {data, data + HEAD, size - HEAD};
    TARGET(&in);
    return 0;
}
