/* The product of a few rows with some rows of a matrix. Other formats than bfloat16 use it for their last step too. */

#ifndef PENSTOCK_PRODUCTS_H
#define PENSTOCK_PRODUCTS_H

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define PENSTOCK_X86
#include "lanes.h"

#define MOST 4 /* rows in one pass over the matrix */

/* x [tokens, k] times `there` rows, at most 2 * LANES, of w [.., k], into out [tokens, n]. */
void penstock_piece(int tokens, const uint16_t *w, const uint16_t *x, uint16_t *out, long n, long k, long chunk,
                    long there);

#endif
#endif
