/* Tiles of the lossless format, as in formats/lossless.h. */

#ifndef PENSTOCK_LOSSLESS_H
#define PENSTOCK_LOSSLESS_H

#include <stdint.h>
#include <string.h>

#define CODED_ROWS 16  /* rows of a tile */
#define CODED_GROUP 64 /* numbers that are decoded at once */
#define CODED_LEVELS 3 /* of codes with two bits */
#define CODED_RUN 8    /* groups that are decoded one after the other: 32 columns, a cache line of each row */
#define CODED_HEAD 20  /* bytes of a tile before its levels */

static inline uint64_t quarter(uint64_t codes) { return (codes + 3) / 4; }

#endif
