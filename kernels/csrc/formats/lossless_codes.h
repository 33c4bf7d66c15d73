/* The next exponents of a tile of the lossless format: 64 at a time. lossless.h describes the layout.

   With VPEXPANDB each level puts its exponents where the level before has none, 64 numbers at a time. Without it that
   costs too much for the later levels, which have few: there each level prepares many exponents at a time, before the
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

/* To be called before each CODED_RUN groups. */
INLINE void make_ready(struct coded_tile *tile) { (void)tile; }

/* The exponents of the next group. */
INLINE void next_exponents(struct coded_tile *tile, uint8_t to[CODED_GROUP])
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
    _mm512_storeu_si512(to, _mm512_mask_expand_epi8(exponent, none, others));
    tile->at[2] += (uint64_t)_mm_popcnt_u64(none);
    tile->codes += CODED_GROUP / 4;
}

#else

#define READY_MOST 1024 /* exponents that a level prepares at a time */
#define RUN_MOST (CODED_RUN * CODED_GROUP)

/* Exponents from `next` to `end` are ready. `left` codes are not decoded yet. */
struct code_level {
    const uint8_t *next, *end, *codes;
    uint64_t left;
    uint8_t table[16]; /* the exponent of each code */
};

/* A tile during decoding. Of the first level only the table is used. Behind the levels with codes are exponents without
   a code, of which all are ready. `ahead` is the place of `rest` in the tile behind it, to prefetch. */
struct coded_tile {
    const uint8_t *codes, *rest, *ahead;
    uint64_t stride;
    int damaged;
    struct code_level levels[CODED_LEVELS + 1];
    uint8_t ready[CODED_LEVELS - 1][READY_MOST + RUN_MOST + CODED_GROUP]; /* past `end` without meaning, but read */
};

INLINE void start_levels(struct coded_tile *tile, const uint32_t table[CODED_LEVELS], const uint8_t *const at[CODED_LEVELS],
                         const uint64_t counts[CODED_LEVELS])
{
    memset(tile->levels, 0, sizeof tile->levels);
    tile->damaged = 0;
    for (int i = 0; i < CODED_LEVELS; i++)
        memcpy(tile->levels[i].table + 1, (const uint8_t *)&table[i] + 1, 3); /* code 0 has none */
    for (int i = 1; i < CODED_LEVELS; i++) {
        tile->levels[i].codes = at[i - 1];
        tile->levels[i].left = counts[i - 1];
        tile->levels[i].next = tile->levels[i].end = tile->ready[i - 1];
    }
    tile->levels[CODED_LEVELS].next = at[CODED_LEVELS - 1];
    tile->levels[CODED_LEVELS].end = at[CODED_LEVELS - 1] + counts[CODED_LEVELS - 1];
}

/* Notes if more was taken from a level than it has. */
INLINE void settle(struct coded_tile *tile, struct code_level *level)
{
    if (level->next > level->end) {
        tile->damaged = 1;
        level->next = level->end;
    }
}

/* Whether the levels held exactly what level 0 requested. */
INLINE int finished(const struct coded_tile *tile)
{
    int whole = !tile->damaged;
    for (int i = 1; i <= CODED_LEVELS; i++)
        whole &= !tile->levels[i].left && tile->levels[i].next == tile->levels[i].end;
    return whole;
}

#ifdef SPREADS_PARTS
/* Exponents for 64 codes. Those without a code come from `from`. Returns their number. */
INLINE uint64_t spread(const byte_part codes[PARTS], const uint8_t table[16], const uint8_t *from, uint8_t *to)
{
    uint64_t used = 0;
    byte_part made;
#define SPREAD_PART(I)                                                                                                 \
    used += part_spread(codes[I], table, from + used, &made);                                                          \
    part_store_bytes(to + I * WIDTH, made);
    EACH_PART(SPREAD_PART)
    return used;
}
#endif

/* Whether a level should prepare more, before `count` are taken. */
INLINE int runs_short(const struct code_level *level, long count)
{
    return level->end - level->next < count && level->left;
}

static void prepare_last(struct coded_tile *tile);

/* Fills the room of a level, 1 or 2, with exponents that follow those that are ready. Nothing is requested past the
   last code. */
INLINE void prepare(struct coded_tile *tile, const int number)
{
    struct code_level *level = &tile->levels[number], *below = level + 1;
    uint8_t *first = tile->ready[number - 1], *to = first + (level->end - level->next);
    memmove(first, level->next, (size_t)(level->end - level->next));
    while (level->left && to + CODED_GROUP <= first + READY_MOST) {
        const unsigned more = level->left < CODED_GROUP ? (unsigned)level->left : CODED_GROUP;
        byte_part codes[PARTS];
        if (number == 1 && runs_short(below, CODED_GROUP))
            prepare_last(tile);
        codes_in_turn(level->codes, codes);
        if (more < CODED_GROUP)
            memset((uint8_t *)codes + more, 1, CODED_GROUP - more);
        below->next += spread(codes, level->table, below->next, to);
        settle(tile, below);
        level->codes += CODED_GROUP / 4;
        level->left -= more;
        to += more;
    }
    level->next = first;
    level->end = to;
}

static APART void prepare_first(struct coded_tile *tile) { prepare(tile, 1); }
static APART void prepare_last(struct coded_tile *tile) { prepare(tile, 2); }

/* To be called before each CODED_RUN groups. */
INLINE void make_ready(struct coded_tile *tile)
{
    settle(tile, &tile->levels[1]);
    if (runs_short(&tile->levels[1], RUN_MOST))
        prepare_first(tile);
}

/* The exponents of the next group. */
INLINE void next_exponents(struct coded_tile *tile, uint8_t to[CODED_GROUP])
{
    struct code_level *below = &tile->levels[1];
    byte_part codes[PARTS];
    codes_in_stripes(tile->codes, codes);
    below->next += spread(codes, tile->levels[0].table, below->next, to);
    tile->codes += CODED_GROUP / 4;
}

#undef READY_MOST
#undef RUN_MOST

#endif
