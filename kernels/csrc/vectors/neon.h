/* Operations of NEON, which every AArch64 processor has, for vectors.h. */

#define part_fma(A, B, C) ((float_part)vfmaq_f32((float32x4_t)(C), (float32x4_t)(A), (float32x4_t)(B)))
#define part_min(A, B) ((float_part)vbslq_f32(vcltq_f32((float32x4_t)(A), (float32x4_t)(B)), (float32x4_t)(A), (float32x4_t)(B)))
#define part_max(A, B) ((float_part)vbslq_f32(vcgtq_f32((float32x4_t)(A), (float32x4_t)(B)), (float32x4_t)(A), (float32x4_t)(B)))
#define part_round(A) ((float_part)vrndnq_f32((float32x4_t)(A)))
#define part_floor(A) ((float_part)vrndmq_f32((float32x4_t)(A)))
#define part_ceil(A) ((float_part)vrndpq_f32((float32x4_t)(A)))
#define part_to_words(A) ((word_part)vcvtnq_s32_f32((float32x4_t)(A)))

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
