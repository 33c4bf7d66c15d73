/* Encoder of tiles of the lossless format. formats/lossless.h describes the layout. */

#include "lossless.h"

static uint8_t turned(uint8_t exponent) { return (uint8_t)(exponent >> 1 | exponent << 7); }

/* The level and code of each exponent by its frequency: code << 2 * level, 0 if it has none. Fills `table` and the
   numbers of exponents in levels 1, 2 and 3. */
static void assign(const uint32_t often[256], uint8_t codes[256], uint32_t table[CODED_LEVELS], uint32_t counts[CODED_LEVELS])
{
    uint32_t left = 0;
    for (int e = 0; e < 256; e++)
        left += often[e];
    memset(codes, 0, 256);
    for (int level = 0; level < CODED_LEVELS; level++) {
        table[level] = 0;
        for (int code = 1; code < 4; code++) {
            int best = -1;
            for (int e = 0; e < 256; e++)
                if (often[e] && !codes[e] && (best < 0 || often[e] > often[best]))
                    best = e;
            if (best < 0)
                break;
            codes[best] = (uint8_t)(code << 2 * level);
            table[level] |= (uint32_t)turned((uint8_t)best) << 8 * code;
            left -= often[best];
        }
        counts[level] = left;
    }
}

static void pack(const uint8_t *codes, uint32_t count, uint8_t *out)
{
    for (uint32_t i = 0; i < count; i += 4) {
        uint8_t byte = 0;
        for (uint32_t j = i; j < i + 4 && j < count; j++)
            byte |= (uint8_t)(codes[j] << 2 * (j - i));
        *out++ = byte;
    }
}

/* What to store of a tile: codes, tables, and the numbers of exponents that each level leaves. */
struct coding {
    uint8_t codes[256];
    uint32_t table[CODED_LEVELS], counts[CODED_LEVELS];
    uint64_t escapes, length; /* bytes of the levels behind the first, and of the whole tile */
};

static void find_coding(const uint16_t *from, long k, struct coding *found)
{
    const long numbers = CODED_ROWS * k;
    uint32_t parts[4][256] = {{0}};
    /* Four counters for each exponent, because the same one often repeats. */
    for (long i = 0; i < numbers; i++)
        parts[i & 3][from[i] >> 7 & 255]++;
    for (int e = 0; e < 256; e++)
        parts[0][e] += parts[1][e] + parts[2][e] + parts[3][e];
    assign(parts[0], found->codes, found->table, found->counts);
    found->escapes = quarter(found->counts[0]) + quarter(found->counts[1]) + found->counts[2];
    found->length = CODED_HEAD + found->escapes + (uint64_t)(numbers / 4 + numbers);
    if (found->length > 2 * (uint64_t)numbers)
        found->length = 2 * (uint64_t)numbers;
}

/* Encodes one tile from [16, k], k a multiple of 4. Returns its bytes. `scratch` has 16 * k + 1 bytes for each
   level. */
static uint64_t encode(const uint16_t *from, long k, uint8_t *out, uint8_t *scratch)
{
    const long numbers = CODED_ROWS * k;
    struct coding found;
    uint32_t at[CODED_LEVELS] = {0};
    uint8_t *levels[CODED_LEVELS];
    find_coding(from, k, &found);
    const uint64_t escapes = found.escapes, length = found.length;
    const uint32_t *table = found.table, *counts = found.counts;
    const uint8_t *codes = found.codes;
    if (length == 2 * (uint64_t)numbers) {
        memcpy(out, from, 2 * (size_t)numbers);
        return length;
    }
    for (int level = 0; level < CODED_LEVELS; level++)
        levels[level] = scratch + level * (numbers + 1);
    memcpy(out, table, sizeof found.table);
    memcpy(out + sizeof found.table, counts, 2 * sizeof *counts);
    uint8_t *low = out + CODED_HEAD + escapes, *rest = low + numbers / 4;
    for (long group = 0; group < k / 4; group++, low += CODED_GROUP / 4, rest += CODED_GROUP) {
        uint8_t first[CODED_GROUP];
        for (int i = 0; i < CODED_GROUP; i++) {
            const int row = i / 16 * 4 + i % 8 / 2, column = i / 8 % 2 * 2 + i % 2;
            const uint16_t number = from[row * k + group * 4 + column];
            const uint8_t exponent = (uint8_t)(number >> 7), code = codes[exponent];
            const int none = (code & 3) == 0, none_too = none & ((code & 15) == 0);
            rest[i] = (uint8_t)((number >> 8 & 0x80) | (number & 0x7f));
            first[i] = code & 3;
            levels[0][at[0]] = code >> 2 & 3;
            at[0] += (uint32_t)none;
            levels[1][at[1]] = code >> 4;
            at[1] += (uint32_t)none_too;
            levels[2][at[2]] = turned(exponent);
            at[2] += (uint32_t)(code == 0);
        }
        for (int i = 0; i < CODED_GROUP / 4; i++)
            low[i] = (uint8_t)(first[i] | first[i + 16] << 2 | first[i + 32] << 4 | first[i + 48] << 6);
    }
    out += CODED_HEAD;
    pack(levels[0], counts[0], out);
    out += quarter(counts[0]);
    pack(levels[1], counts[1], out);
    out += quarter(counts[1]);
    memcpy(out, levels[2], counts[2]);
    return length;
}

/* Encodes `tiles` tiles from [16 * tiles, k], one behind the other, to `out`, which is as large as `from`.
   lengths[i] receives the bytes of tile i. `scratch` has 48 * k + 3 bytes.
   Takes: 16 * tiles * k numbers, with any bits, k a multiple of 4. Refuses nothing: lossless.py does. */
void penstock_lossless_encode(const uint16_t *from, long tiles, long k, uint8_t *out, int64_t *lengths,
                              uint8_t *scratch)
{
    for (long i = 0; i < tiles; i++) {
        lengths[i] = (int64_t)encode(from + i * CODED_ROWS * k, k, out, scratch);
        out += lengths[i];
    }
}

/* As many bytes as each tile would have: what penstock_lossless_encode would fill lengths with, of the same tiles.
   Takes: whole tiles of CODED_ROWS rows of k numbers, with any bits. Refuses nothing. */
void penstock_lossless_lengths(const uint16_t *from, long tiles, long k, int64_t *lengths)
{
    struct coding found;
    for (long i = 0; i < tiles; i++) {
        find_coding(from + i * CODED_ROWS * k, k, &found);
        lengths[i] = (int64_t)found.length;
    }
}
