/* Operations of NEON, which every AArch64 processor has, for vectors.h. */

#define part_fma(A, B, C) ((float_part)vfmaq_f32((float32x4_t)(C), (float32x4_t)(A), (float32x4_t)(B)))
#define part_fma_once part_fma
#define part_min(A, B) ((float_part)vbslq_f32(vcltq_f32((float32x4_t)(A), (float32x4_t)(B)), (float32x4_t)(A), (float32x4_t)(B)))
#define part_max(A, B) ((float_part)vbslq_f32(vcgtq_f32((float32x4_t)(A), (float32x4_t)(B)), (float32x4_t)(A), (float32x4_t)(B)))
#define part_round(A) ((float_part)vrndnq_f32((float32x4_t)(A)))
#define part_floor(A) ((float_part)vrndmq_f32((float32x4_t)(A)))
#define part_ceil(A) ((float_part)vrndpq_f32((float32x4_t)(A)))
#define part_to_words(A) ((word_part)vcvtnq_s32_f32((float32x4_t)(A)))
#define part_dot_halves(A, B) (((A) << 16 >> 16) * ((B) << 16 >> 16) + ((A) >> 16) * ((B) >> 16))

INLINE float part_most(float_part a) { return vmaxvq_f32((float32x4_t)a); }
INLINE int part_any(word_part a) { return vmaxvq_u32((uint32x4_t)a) != 0; }

/* Bits of a where the mask is set, else of b. */
#define part_choose(MASK, A, B) ((word_part)vbslq_u32((uint32x4_t)(MASK), (uint32x4_t)(A), (uint32x4_t)(B)))

INLINE words w_of_halves(uint16x8_t low, uint16x8_t high)
{
    return (words){{(word_part)vmovl_u16(vget_low_u16(low)), (word_part)vmovl_u16(vget_high_u16(low)),
                    (word_part)vmovl_u16(vget_low_u16(high)), (word_part)vmovl_u16(vget_high_u16(high))}};
}

INLINE words w_load_bytes(const void *from)
{
    const uint8x16_t bytes = vld1q_u8(from);
    return w_of_halves(vmovl_u8(vget_low_u8(bytes)), vmovl_u8(vget_high_u8(bytes)));
}

INLINE words w_load_signed_bytes(const void *from)
{
    const int8x16_t bytes = vld1q_s8(from);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return (words){{(word_part)vmovl_s16(vget_low_s16(low)), (word_part)vmovl_s16(vget_high_s16(low)),
                    (word_part)vmovl_s16(vget_low_s16(high)), (word_part)vmovl_s16(vget_high_s16(high))}};
}

INLINE words w_load_halves(const void *from)
{
    uint16x8_t two[2];
    memcpy(two, from, sizeof two);
    return w_of_halves(two[0], two[1]);
}

INLINE void w_store_halves(void *to, words a)
{
    const uint16x8_t low = vcombine_u16(vmovn_u32((uint32x4_t)a.p[0]), vmovn_u32((uint32x4_t)a.p[1]));
    const uint16x8_t high = vcombine_u16(vmovn_u32((uint32x4_t)a.p[2]), vmovn_u32((uint32x4_t)a.p[3]));
    memcpy(to, &low, sizeof low);
    memcpy((char *)to + sizeof low, &high, sizeof high);
}

INLINE floats f_load_half(const void *from)
{
    uint16x8_t two[2];
    memcpy(two, from, sizeof two);
    const float16x8_t low = vreinterpretq_f16_u16(two[0]), high = vreinterpretq_f16_u16(two[1]);
    return (floats){{(float_part)vcvt_f32_f16(vget_low_f16(low)), (float_part)vcvt_f32_f16(vget_high_f16(low)),
                     (float_part)vcvt_f32_f16(vget_low_f16(high)), (float_part)vcvt_f32_f16(vget_high_f16(high))}};
}

INLINE void f_store_half(void *to, floats a)
{
    float16x4_t halves[4];
#define STORE_HALF_PART(I) halves[I] = vcvt_f16_f32((float32x4_t)a.p[I]);
    EACH_PART(STORE_HALF_PART)
    memcpy(to, halves, sizeof halves);
}

INLINE float half_to_float(uint16_t bits)
{
    __fp16 number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

INLINE float part_sum(float_part a)
{
    const float32x2_t two = vadd_f32(vget_low_f32((float32x4_t)a), vget_high_f32((float32x4_t)a));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

/* table[i] for the lowest four bits i of each lane. Other bits have no meaning. */
INLINE floats f_lookup(words a, floats table)
{
    floats made;
    uint8x16x4_t bytes;
#define TABLE_PART(I) bytes.val[I] = (uint8x16_t)table.p[I];
    EACH_PART(TABLE_PART)
    /* The places of a number's four bytes. */
#define LOOKUP_PART(I) made.p[I] = (float_part)vqtbl4q_u8(bytes, (uint8x16_t)((a.p[I] & 15) * 0x04040404 + 0x03020100));
    EACH_PART(LOOKUP_PART)
    return made;
}

/* Sixteen halves of eight bytes, the lower half of each first. Bits above the lowest four have no meaning. */
INLINE words w_load_byte_halves(const void *from)
{
    const uint8x8_t bytes = vld1_u8(from);
    const uint8x16_t both = vcombine_u8(vzip1_u8(bytes, vshr_n_u8(bytes, 4)), vzip2_u8(bytes, vshr_n_u8(bytes, 4)));
    return w_of_halves(vmovl_u8(vget_low_u8(both)), vmovl_u8(vget_high_u8(both)));
}

/* Sixteen numbers of float8_e4m3fn, divided by 256: with the bits of float16, which has an exponent bit more. */
INLINE floats f_load_float8(const void *from)
{
    const uint8x16_t bytes = vld1q_u8(from);
    uint16x8_t halves[2] = {vmovl_u8(vget_low_u8(bytes)), vmovl_u8(vget_high_u8(bytes))};
    for (int i = 0; i < 2; i++) {
        const uint16x8_t size = halves[i] & 0x7f, nan = (uint16x8_t)(size == 0x7f) & 0x7c00;
        halves[i] = size << 7 | (halves[i] & 0x80) << 8 | nan;
    }
    return f_load_half(halves);
}

/* Of each half of a lane: the product of a, not negative, and b, in units of 1 << 15, to the nearest, ties up. */
INLINE words w_scale_halves(words a, words b)
{
#define SCALE_HALVES_PART(I) a.p[I] = (word_part)vqrdmulhq_s16((int16x8_t)a.p[I], (int16x8_t)b.p[I]);
    EACH_PART(SCALE_HALVES_PART)
    return a;
}

/* made[b] gets words b, b + 4, b + 8, ... of four registers. */
INLINE void part_load_4(const void *from, word_part made[4])
{
    const int32x4x4_t all = vld4q_s32(from);
    for (int i = 0; i < 4; i++)
        made[i] = (word_part)all.val[i];
}

/* column[j] gets word j of each of the sixteen rows. */
INLINE void w_transpose(const words row[LANES], words column[LANES])
{
#define TRANSPOSE_FOUR(PART)                                                                                           \
    for (int i = 0; i < 4; i++) {                                                                                      \
        int32x4x4_t four;                                                                                              \
        int32_t room[16];                                                                                              \
        for (int r = 0; r < 4; r++)                                                                                    \
            four.val[r] = (int32x4_t)row[4 * i + r].p[PART];                                                           \
        vst4q_s32(room, four);                                                                                         \
        for (int c = 0; c < 4; c++)                                                                                    \
            ((word_part *)&column[4 * PART + c])[i] = (word_part)vld1q_s32(room + 4 * c);                              \
    }
    EACH_PART(TRANSPOSE_FOUR)
}

/* Bytes of a and b in turn, of the first and of the second half of each sixteen. */
INLINE byte_part part_zip_low(byte_part a, byte_part b) { return (byte_part)vzip1q_u8((uint8x16_t)a, (uint8x16_t)b); }
INLINE byte_part part_zip_high(byte_part a, byte_part b) { return (byte_part)vzip2q_u8((uint8x16_t)a, (uint8x16_t)b); }

/* table[i] for each byte i below 16. */
INLINE byte_part part_lookup_bytes(byte_part a, byte_part table)
{
    return (byte_part)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)a);
}

/* ---- 64 codes of two bits, a byte each ---- */

/* In sixteen bytes: those in the lowest bits of each, then those in the next. */
INLINE void codes_in_stripes(const void *from, byte_part codes[PARTS])
{
    const byte_part bytes = (byte_part)vld1q_u8(from);
#define STRIPE_PART(I) codes[I] = bytes >> 2 * I & 3;
    EACH_PART(STRIPE_PART)
}

/* In sixteen bytes: four of each byte, then four of the next. */
INLINE void codes_in_turn(const void *from, byte_part codes[PARTS])
{
    byte_part stripes[PARTS];
    codes_in_stripes(from, stripes);
    const uint16x8_t low[2] = {(uint16x8_t)part_zip_low(stripes[0], stripes[1]),
                               (uint16x8_t)part_zip_low(stripes[2], stripes[3])};
    const uint16x8_t high[2] = {(uint16x8_t)part_zip_high(stripes[0], stripes[1]),
                                (uint16x8_t)part_zip_high(stripes[2], stripes[3])};
    codes[0] = (byte_part)vzip1q_u16(low[0], low[1]);
    codes[1] = (byte_part)vzip2q_u16(low[0], low[1]);
    codes[2] = (byte_part)vzip1q_u16(high[0], high[1]);
    codes[3] = (byte_part)vzip2q_u16(high[0], high[1]);
}

#define SPREADS_PARTS

/* to[i] = table[codes[i]], or if that code is 0, for which the table has 0, the next one of `from`. Returns the number of
   those. May read as many bytes as a part has. */
INLINE uint64_t part_spread(byte_part codes, const uint8_t table[16], const uint8_t *from, byte_part *to)
{
    const uint8x16_t code = (uint8x16_t)codes, zero = vdupq_n_u8(0), none = vceqq_u8(code, zero);
    /* The number of codes 0 up to each, negative. */
    uint8x16_t count = vaddq_u8(none, vextq_u8(zero, none, 15));
    count = vaddq_u8(count, vextq_u8(zero, count, 14));
    count = vaddq_u8(count, vextq_u8(zero, count, 12));
    count = vaddq_u8(count, vextq_u8(zero, count, 8));
    const uint8x16_t others = vandq_u8(vqtbl1q_u8(vld1q_u8(from), vsubq_u8(none, count)), none);
    *to = (byte_part)vorrq_u8(vqtbl1q_u8(vld1q_u8(table), code), others);
    return (256u - vgetq_lane_u8(count, 15)) & 255u;
}
