/* The next exponents of a tile of the lossless format: 64 at a time. lossless.h describes the layout.

   With VPEXPANDB each level puts its exponents where the level before has none, 64 numbers at a time. Without it that
   costs too much for the later levels, which have few: there each level prepares 64 exponents at a time, before the
   level above needs them. */

#include "../lossless.h"
#include "../vectors/vectors.h"

#ifdef HAS_EXPAND

/* A tile during decoding. at[i] counts the codes taken of level i + 1, of counts[i]. `ahead` is the place of `rest` in
   the tile behind it, to prefetch. */
struct coded_tile {
    __m512i table[CODED_LEVELS];
    const uint8_t *codes, *rest, *ahead;
    uint64_t stride;
    const uint8_t *levels[CODED_LEVELS];
    uint64_t counts[CODED_LEVELS], at[CODED_LEVELS];
};

INLINE void start_levels(struct coded_tile *tile, const uint32_t table[CODED_LEVELS], const uint8_t *const at[CODED_LEVELS],
                         const uint64_t counts[CODED_LEVELS])
{
    for (int i = 0; i < CODED_LEVELS; i++) {
        tile->table[i] = _mm512_set1_epi32((int)table[i]);
        tile->levels[i] = at[i];
        tile->counts[i] = counts[i];
        tile->at[i] = 0;
    }
}

/* Whether the levels held exactly what level 0 requested. */
INLINE int finished(const struct coded_tile *tile)
{
    return tile->at[0] == tile->counts[0] && tile->at[1] == tile->counts[1] && tile->at[2] == tile->counts[2];
}

/* The next codes of a level, never past its end, whatever the earlier levels say. The loads may reach 64 bytes past
   it, which exist: level 0 and the rest follow. */
INLINE uint64_t place_in(const struct coded_tile *tile, int level)
{
    return tile->at[level] < tile->counts[level] ? tile->at[level] : tile->counts[level];
}

/* Gives the numbers in `none` the exponents that level + 1 has for them. Returns those without one there. */
INLINE __mmask64 descend(struct coded_tile *tile, const int level, __mmask64 none, __m512i *exponent)
{
    /* Codes follow each other, four in a byte: eight of them are in the 24 bits from byte 2i on. */
    const __m512i eights = _mm512_add_epi64(_mm512_set1_epi64(0x0706050403020100),
                                            _mm512_set_epi64(0x0e0e0e0e0e0e0e0e, 0x0c0c0c0c0c0c0c0c, 0x0a0a0a0a0a0a0a0a,
                                                             0x0808080808080808, 0x0606060606060606, 0x0404040404040404,
                                                             0x0202020202020202, 0));
    const uint64_t at = place_in(tile, level);
    const __m512i shift = _mm512_add_epi8(_mm512_set1_epi64(0x0e0c0a0806040200), _mm512_set1_epi8((char)(at % 4 * 2)));
    const __m256i bytes = _mm256_loadu_si256((const __m256i *)(tile->levels[level] + at / 4));
    __m512i code = _mm512_multishift_epi64_epi8(shift, _mm512_permutexvar_epi8(eights, _mm512_castsi256_si512(bytes)));
    code = _mm512_maskz_expand_epi8(none, code);
    *exponent = _mm512_mask_permutexvar_epi8(*exponent, none, code, tile->table[level + 1]);
    tile->at[level] += (uint64_t)_mm_popcnt_u64(none);
    return _mm512_mask_testn_epi8_mask(none, code, _mm512_set1_epi8(3));
}

/* The exponents of the next group. */
INLINE void next_exponents(struct coded_tile *tile, byte_part to[PARTS])
{
    /* Byte i of level 0 has the codes of numbers i, i + 16, i + 32 and i + 48. */
    const __m512i apart = _mm512_add_epi64(_mm512_set1_epi64(0x3830282018100800),
                                           _mm512_set_epi64(0x0606060606060606, 0x0606060606060606, 0x0404040404040404,
                                                            0x0404040404040404, 0x0202020202020202, 0x0202020202020202,
                                                            0, 0));
    const __m512i first = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)tile->codes));
    const __m512i code = _mm512_multishift_epi64_epi8(apart, first);
    __m512i exponent = _mm512_permutexvar_epi8(code, tile->table[0]);
    __mmask64 none = _mm512_testn_epi8_mask(code, _mm512_set1_epi8(3));
    none = descend(tile, 0, none, &exponent);
    none = descend(tile, 1, none, &exponent);
    const __m512i others = _mm512_loadu_si512(tile->levels[2] + place_in(tile, 2));
    to[0] = (byte_part)_mm512_mask_expand_epi8(exponent, none, others);
    tile->at[2] += (uint64_t)_mm_popcnt_u64(none);
    tile->codes += CODED_GROUP / 4;
}

#else

struct code_level {
    uint8_t table[16];               /* the exponent of each code */
    const uint8_t *codes;
    uint64_t left;                   /* codes that are not decoded yet */
    uint8_t ready[4 * CODED_GROUP];  /* bytes past `have` are read, but have no meaning */
    unsigned at, have;               /* number taken, and number ready */
};

/* A tile during decoding. Of the first level only the table is used. `bytes` are exponents without a code. `ahead` is
   the place of `rest` in the tile behind it, to prefetch. */
struct coded_tile {
    struct code_level levels[CODED_LEVELS];
    const uint8_t *codes, *rest, *ahead, *bytes;
    uint64_t stride, left;
    int damaged;
};

INLINE void start_levels(struct coded_tile *tile, const uint32_t table[CODED_LEVELS], const uint8_t *const at[CODED_LEVELS],
                         const uint64_t counts[CODED_LEVELS])
{
    for (int i = 0; i < CODED_LEVELS; i++) {
        struct code_level *level = &tile->levels[i];
        memset(level->table, 0, sizeof level->table);
        memcpy(level->table + 1, (const uint8_t *)&table[i] + 1, 3); /* code 0 has none */
        level->at = level->have = 0;
        memset(level->ready, 0, sizeof level->ready);
        if (i) {
            level->codes = at[i - 1];
            level->left = counts[i - 1];
        }
    }
    tile->bytes = at[2];
    tile->left = counts[2];
    tile->damaged = 0;
}

/* Whether the levels held exactly what level 0 requested. */
INLINE int finished(const struct coded_tile *tile)
{
    int whole = !tile->damaged && !tile->left;
    for (int i = 1; i < CODED_LEVELS; i++)
        whole &= !tile->levels[i].left && tile->levels[i].at == tile->levels[i].have;
    return whole;
}

/* Exponents for 64 codes. Those without a code come from `from`. Returns their number. */
INLINE unsigned spread(const byte_part codes[PARTS], const uint8_t *table, const uint8_t *from, byte_part to[PARTS])
{
    unsigned used = 0;
#define SPREAD_PART(I) used += part_spread(codes[I], table, from + used, &to[I]);
    EACH_PART(SPREAD_PART)
    return used;
}

/* Takes exponents that a level has made ready. */
INLINE void take_ready(struct coded_tile *tile, struct code_level *level, unsigned used)
{
    level->at += used;
    tile->damaged |= level->at > level->have;
    level->at = level->at < level->have ? level->at : level->have;
}

/* Whether a level should prepare more, before 64 are taken. */
INLINE int runs_short(const struct code_level *level) { return level->have - level->at < CODED_GROUP && level->left; }

INLINE void store_exponents(uint8_t *to, const byte_part exponents[PARTS])
{
#define STORE_EXPONENTS_PART(I) part_store_bytes(to + I * WIDTH, exponents[I]);
    EACH_PART(STORE_EXPONENTS_PART)
}

/* The next codes of a level, at most 64. Nothing is requested past the end. Makes room for their exponents, and returns
   it. */
INLINE uint8_t *next_codes(struct code_level *level, byte_part codes[PARTS])
{
    const unsigned there = level->have - level->at, more = level->left < CODED_GROUP ? (unsigned)level->left : CODED_GROUP;
    byte_part kept[PARTS];
#define KEEP_PART(I) kept[I] = part_load_bytes(level->ready + level->at + I * WIDTH); /* fewer bytes are valid */
    EACH_PART(KEEP_PART)
    store_exponents(level->ready, kept);
    codes_in_turn(level->codes, codes);
    if (more < CODED_GROUP)
        memset((uint8_t *)codes + more, 1, CODED_GROUP - more);
    level->codes += CODED_GROUP / 4;
    level->left -= more;
    level->have = there + more;
    level->at = 0;
    return level->ready + there;
}

static APART void prepare_last(struct coded_tile *tile)
{
    struct code_level *level = &tile->levels[2];
    byte_part codes[PARTS], exponents[PARTS];
    uint8_t *to = next_codes(level, codes);
    const unsigned used = spread(codes, level->table, tile->bytes, exponents);
    const uint64_t taken = used < tile->left ? used : tile->left;
    store_exponents(to, exponents);
    tile->damaged |= used > tile->left;
    tile->bytes += taken;
    tile->left -= taken;
}

static APART void prepare_middle(struct coded_tile *tile)
{
    struct code_level *level = &tile->levels[1], *below = &tile->levels[2];
    byte_part codes[PARTS], exponents[PARTS];
    if (runs_short(below))
        prepare_last(tile);
    uint8_t *to = next_codes(level, codes);
    take_ready(tile, below, spread(codes, level->table, below->ready + below->at, exponents));
    store_exponents(to, exponents);
}

/* The exponents of the next group. */
INLINE void next_exponents(struct coded_tile *tile, byte_part to[PARTS])
{
    struct code_level *below = &tile->levels[1];
    byte_part codes[PARTS];
    if (runs_short(below))
        prepare_middle(tile);
    codes_in_stripes(tile->codes, codes);
    take_ready(tile, below, spread(codes, tile->levels[0].table, below->ready + below->at, to));
    tile->codes += CODED_GROUP / 4;
}

#endif
