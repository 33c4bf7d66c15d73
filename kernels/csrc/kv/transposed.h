/* Keys with their numbers in columns, so that each lane computes one token. */

#ifndef PENSTOCK_TRANSPOSED_H
#define PENSTOCK_TRANSPOSED_H

#include "../vectors/vectors.h"

INLINE const void *numbers_at(const void *from, long at, int brief) { return (const char *)from + at * (brief ? 2 : 4); }

/* Transposes up to LANES keys of `dim` numbers: columns [dim][LANES], or [dim / 2][LANES] of bfloat16 pairs. Bfloat16
   numbers are always transposed as pairs. What is missing of the last is zero. */
INLINE void transposed(const void *keys, const int pairs, const int brief, long dim, long there, words *columns)
{
    const long step = brief ? 2 * LANES : LANES;
    for (long at = 0; at < dim; at += step) {
        words row[LANES], column[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) {
            const void *from = numbers_at(keys, i * dim + at, brief);
            if (i >= there)
                row[i] = w_all(0);
            else if (dim - at >= step)
                row[i] = w_load(from);
            else
                row[i] = brief ? w_load_some_pairs(from, dim - at) : w_load_some(from, dim - at);
        }
        w_transpose(row, column);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (brief && !pairs) {
                columns[at + 2 * i] = w_shl(column[i], 16);
                columns[at + 2 * i + 1] = w_and(column[i], w_all((int32_t)0xffff0000));
            } else
                columns[at / (brief ? 2 : 1) + i] = column[i];
    }
}

#endif
