/* Scalar conversions of bfloat16 numbers, for any processor. */

#ifndef PENSTOCK_BFLOAT16_H
#define PENSTOCK_BFLOAT16_H

#include <stdint.h>

static inline float widened(uint16_t number)
{
    const union { uint32_t bits; float number; } wide = {(uint32_t)number << 16};
    return wide.number;
}

/* Rounds to the nearest, ties to even. Unlike the processor's own conversion it keeps subnormal numbers. */
static inline uint16_t rounded(float number)
{
    const union { float number; uint32_t bits; } wide = {number};
    return number != number ? 0x7fc0 : (uint16_t)((wide.bits + 0x7fff + ((wide.bits >> 16) & 1)) >> 16);
}

#endif
