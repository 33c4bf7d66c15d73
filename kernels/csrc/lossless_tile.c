/* Decoder of tiles of the lossless format without AVX-512, see lossless.c: 64 numbers at a time, in plain C or with
   AVX2.

   Each level prepares 64 exponents at a time, before the level above needs them: those of its codes, and for numbers
   without a code the next ones that the level below has prepared. */

#include "lossless.h"

typedef struct {
    uint8_t table[16];           /* the exponent of each code */
    const uint8_t *codes;
    uint64_t left;               /* codes that are not decoded yet */
    uint8_t ready[4 * GROUP];    /* bytes past `have` are read, but have no meaning */
    unsigned at, have;           /* number taken, and number ready */
} level;

typedef struct {
    level levels[LEVELS];        /* of the first, only the table is used */
    const uint8_t *codes, *rest; /* of level 0; signs and mantissas */
    const uint8_t *bytes;        /* exponents without a code */
    uint64_t left;               /* of these */
    int damaged;
} tile;

/* Operations on 64 numbers: one set of functions for each kind of processor. */
typedef struct {
    /* The codes in 16 bytes, in the order of level 0, or one after the other. */
    void (*striped)(const uint8_t *from, uint8_t *codes);
    void (*packed)(const uint8_t *from, uint8_t *codes);
    /* to[i] = table[codes[i]], or if that code is 0 the next one of `from`. Returns the number of those. May read 64
       bytes. */
    unsigned (*spread)(const uint8_t *codes, const uint8_t *table, const uint8_t *from, uint8_t *to);
    /* Stores a group's numbers to out [ROWS, `stride`], four columns. */
    void (*join)(const uint8_t *exponents, const uint8_t *rest, uint16_t *out, long stride);
} ways;

static void plain_striped(const uint8_t *from, uint8_t *codes)
{
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < GROUP / 4; i++)
            codes[j * GROUP / 4 + i] = from[i] >> 2 * j & 3;
}

static void plain_packed(const uint8_t *from, uint8_t *codes)
{
    for (int i = 0; i < GROUP / 4; i++)
        for (int j = 0; j < 4; j++)
            codes[4 * i + j] = from[i] >> 2 * j & 3;
}

static unsigned plain_spread(const uint8_t *codes, const uint8_t *table, const uint8_t *from, uint8_t *to)
{
    unsigned used = 0;
    for (int i = 0; i < GROUP; i++) { /* without a branch, which could not be predicted */
        const uint8_t none = (uint8_t)-(codes[i] == 0);
        to[i] = (uint8_t)(table[codes[i]] | (from[used] & none));
        used += none & 1;
    }
    return used;
}

static void plain_join(const uint8_t *exponents, const uint8_t *rest, uint16_t *out, long stride)
{
    uint16_t words[GROUP];
    for (int i = 0; i < GROUP; i++) {
        const uint8_t low = (rest[i] & 0x7f) | (exponents[i] & 0x80), high = (rest[i] & 0x80) | (exponents[i] & 0x7f);
        words[i] = (uint16_t)(low | high << 8);
    }
    for (int row = 0; row < ROWS; row++) {
        memcpy(out + row * stride, words + row / 4 * 16 + row % 4 * 2, 4);
        memcpy(out + row * stride + 2, words + row / 4 * 16 + 8 + row % 4 * 2, 4);
    }
}

static const ways PLAINLY = {plain_striped, plain_packed, plain_spread, plain_join};

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define WITH_16 __attribute__((target("avx2,popcnt")))

static uint64_t places[256]; /* for each eight bits: the next byte for each set place */

__attribute__((constructor)) static void fill_places(void)
{
    for (int bits = 0; bits < 256; bits++) {
        uint8_t bytes[8], next = 0;
        for (int i = 0; i < 8; i++)
            bytes[i] = bits >> i & 1 ? next++ : 0x80; /* 0x80: a zero */
        memcpy(places + bits, bytes, 8);
    }
}

WITH_16 static void striped_16(const uint8_t *from, uint8_t *codes)
{
    const __m128i bytes = _mm_loadu_si128((const __m128i *)from), three = _mm_set1_epi8(3);
    _mm_storeu_si128((__m128i *)codes, _mm_and_si128(bytes, three));
    _mm_storeu_si128((__m128i *)(codes + 16), _mm_and_si128(_mm_srli_epi16(bytes, 2), three));
    _mm_storeu_si128((__m128i *)(codes + 32), _mm_and_si128(_mm_srli_epi16(bytes, 4), three));
    _mm_storeu_si128((__m128i *)(codes + 48), _mm_and_si128(_mm_srli_epi16(bytes, 6), three));
}

WITH_16 static void packed_16(const uint8_t *from, uint8_t *codes)
{
    uint8_t apart[GROUP];
    striped_16(from, apart);
    const __m128i *part = (const __m128i *)apart;
    const __m128i a = _mm_loadu_si128(part), b = _mm_loadu_si128(part + 1), c = _mm_loadu_si128(part + 2),
                  d = _mm_loadu_si128(part + 3);
    const __m128i first[2] = {_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)};
    const __m128i last[2] = {_mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(c, d)};
    for (int i = 0; i < 2; i++) {
        _mm_storeu_si128((__m128i *)codes + 2 * i, _mm_unpacklo_epi16(first[i], last[i]));
        _mm_storeu_si128((__m128i *)codes + 2 * i + 1, _mm_unpackhi_epi16(first[i], last[i]));
    }
}

WITH_16 static unsigned spread_16(const uint8_t *codes, const uint8_t *table, const uint8_t *from, uint8_t *to)
{
    const __m128i exponents = _mm_loadu_si128((const __m128i *)table);
    unsigned used = 0;
    for (int i = 0; i < GROUP; i += 16) {
        const __m128i code = _mm_loadu_si128((const __m128i *)(codes + i));
        const unsigned none = (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(code, _mm_setzero_si128()));
        const unsigned half = used + (unsigned)_mm_popcnt_u32(none & 255);
        const __m128i low = _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)(from + used)),
                                             _mm_loadl_epi64((const __m128i *)(places + (none & 255))));
        const __m128i high = _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)(from + half)),
                                              _mm_loadl_epi64((const __m128i *)(places + (none >> 8))));
        const __m128i others = _mm_unpacklo_epi64(low, high);
        _mm_storeu_si128((__m128i *)(to + i), _mm_or_si128(_mm_shuffle_epi8(exponents, code), others));
        used += (unsigned)_mm_popcnt_u32(none);
    }
    return used;
}

WITH_16 static void join_16(const uint8_t *exponents, const uint8_t *rest, uint16_t *out, long stride)
{
    const __m128i mantissa = _mm_set1_epi8(0x7f);
    for (int i = 0; i < ROWS / 4; i++, out += 4 * stride) {
        const __m128i exponent = _mm_loadu_si128((const __m128i *)exponents + i);
        const __m128i other = _mm_loadu_si128((const __m128i *)rest + i);
        const __m128i low = _mm_or_si128(_mm_and_si128(mantissa, other), _mm_andnot_si128(mantissa, exponent));
        const __m128i high = _mm_or_si128(_mm_and_si128(mantissa, exponent), _mm_andnot_si128(mantissa, other));
        const __m128i left = _mm_unpacklo_epi8(low, high), right = _mm_unpackhi_epi8(low, high);
        const __m128i upper = _mm_unpacklo_epi32(left, right), lower = _mm_unpackhi_epi32(left, right);
        _mm_storel_epi64((__m128i *)out, upper);
        _mm_storel_epi64((__m128i *)(out + stride), _mm_unpackhi_epi64(upper, upper));
        _mm_storel_epi64((__m128i *)(out + 2 * stride), lower);
        _mm_storel_epi64((__m128i *)(out + 3 * stride), _mm_unpackhi_epi64(lower, lower));
    }
}

static const ways BY_16 = {striped_16, packed_16, spread_16, join_16};

int penstock_lossless_16(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt"); }

#else

static const ways BY_16 = {plain_striped, plain_packed, plain_spread, plain_join};

int penstock_lossless_16(void) { return 0; }

#endif

/* Exponents for 64 codes with the table of `level`. Those without a code come from the level below. */
static void exponents(const ways *how, tile *tile, int number, const uint8_t *codes, uint8_t *to)
{
    const uint8_t *table = tile->levels[number].table;
    if (number == LEVELS - 1) {
        const unsigned used = how->spread(codes, table, tile->bytes, to);
        tile->damaged |= used > tile->left;
        const uint64_t taken = used < tile->left ? used : tile->left;
        tile->bytes += taken;
        tile->left -= taken;
        return;
    }
    level *below = &tile->levels[number + 1];
    if (below->have - below->at < GROUP && below->left) {
        const unsigned there = below->have - below->at, more = below->left < GROUP ? (unsigned)below->left : GROUP;
        uint8_t found[GROUP];
        memmove(below->ready, below->ready + below->at, GROUP); /* fewer bytes are valid */
        how->packed(below->codes, found);
        memset(found + more, 1, GROUP - more); /* nothing is requested past the end */
        exponents(how, tile, number + 1, found, below->ready + there);
        below->codes += GROUP / 4;
        below->left -= more;
        below->have = there + more;
        below->at = 0;
    }
    below->at += how->spread(codes, table, below->ready + below->at, to);
    tile->damaged |= below->at > below->have;
    below->at = below->at < below->have ? below->at : below->have;
}

/* 0 if `bytes` at `from` cannot be a tile of `groups` groups. */
static int start(tile *tile, const uint8_t *from, uint64_t bytes, uint64_t groups)
{
    uint32_t counts[2];
    if (bytes < HEAD + groups * (GROUP / 4 + GROUP))
        return 0;
    memcpy(counts, from + 4 * LEVELS, sizeof counts);
    const uint64_t escapes = bytes - HEAD - groups * (GROUP / 4 + GROUP);
    if (escapes < quarter(counts[0]) + quarter(counts[1]))
        return 0;
    memset(tile, 0, sizeof *tile);
    for (int i = 0; i < LEVELS; i++)
        memcpy(tile->levels[i].table + 1, from + 4 * i + 1, 3); /* code 0 has none */
    tile->levels[1].codes = from + HEAD;
    tile->levels[1].left = counts[0];
    tile->levels[2].codes = from + HEAD + quarter(counts[0]);
    tile->levels[2].left = counts[1];
    tile->bytes = tile->levels[2].codes + quarter(counts[1]);
    tile->left = escapes - quarter(counts[0]) - quarter(counts[1]);
    tile->codes = from + HEAD + escapes;
    tile->rest = tile->codes + groups * (GROUP / 4);
    return 1;
}

/* Whether the levels held exactly what level 0 requested. */
static int finished(const tile *tile)
{
    int whole = !tile->damaged && !tile->left;
    for (int i = 1; i < LEVELS; i++)
        whole &= !tile->levels[i].left && tile->levels[i].at == tile->levels[i].have;
    return whole;
}

#define WIDE 32 /* columns of a tile written at a time: a cache line for each row */

int penstock_lossless_tile(int way, const uint8_t *from, uint64_t bytes, long rows, long k, uint16_t *out)
{
    const ways *how = way == BYTES_16 ? &BY_16 : &PLAINLY;
    tile tile;
    if (bytes == 2 * ROWS * (uint64_t)k) {
        memcpy(out, from, (size_t)(2 * rows * k));
        return 1;
    }
    if (!start(&tile, from, bytes, (uint64_t)k / 4))
        return 0;
    for (long at = 0; at < k; at += WIDE) {
        const long columns = k - at < WIDE ? k - at : WIDE;
        uint16_t numbers[ROWS][WIDE];
        for (long column = 0; column < columns; column += 4) {
            uint8_t codes[GROUP], found[GROUP];
            how->striped(tile.codes, codes);
            exponents(how, &tile, 0, codes, found);
            how->join(found, tile.rest, &numbers[0][column], WIDE);
            tile.codes += GROUP / 4;
            tile.rest += GROUP;
        }
        for (long row = 0; row < rows; row++)
            if (columns == WIDE)
                memcpy(out + row * k + at, numbers[row], sizeof *numbers);
            else
                memcpy(out + row * k + at, numbers[row], (size_t)(2 * columns));
    }
    return finished(&tile);
}
