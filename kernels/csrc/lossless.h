/* Tiles of the lossless format, as in lossless.c, and the ways to decode them. */

#ifndef PENSTOCK_LOSSLESS_H
#define PENSTOCK_LOSSLESS_H

#include <stdint.h>
#include <string.h>

#define ROWS 16  /* rows of a tile */
#define GROUP 64 /* numbers that are decoded at once */
#define LEVELS 3 /* of codes with two bits */
#define HEAD 20  /* bytes of a tile before its levels */

enum { PLAIN, BYTES_16, BYTES_64 }; /* ways to decode: in C, with AVX2, with AVX-512 */

static inline uint64_t quarter(uint64_t codes) { return (codes + 3) / 4; }

/* Decodes the first `rows` rows of a tile to out [rows, k], PLAIN or by BYTES_16. 0 if the tile is damaged. */
int penstock_lossless_tile(int way, const uint8_t *from, uint64_t bytes, long rows, long k, uint16_t *out);

/* Whether this processor supports BYTES_16. */
int penstock_lossless_16(void);

#endif
