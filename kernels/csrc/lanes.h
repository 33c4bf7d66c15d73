/* Definitions that the kernels for AVX512 with bfloat16 share. */

#ifndef PENSTOCK_LANES_H
#define PENSTOCK_LANES_H

#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define LANES 16 /* matrix rows that one register of float32 sums holds */
#define STEP 32  /* bfloat16 numbers that one register holds */

/* columns[j] gets number j (a pair of bfloat16) of each of the sixteen rows. */
INLINE void transpose(const __m512i row[LANES], __m512i column[LANES])
{
    __m512i a[LANES], b[LANES];
    for (int i = 0; i < LANES; i += 2) {
        a[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88);
        a[i + 4] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
        a[i + 8] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        column[i] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0x88);
        column[i + 4] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0x88);
        column[i + 8] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd);
        column[i + 12] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0xdd);
    }
}

#endif
