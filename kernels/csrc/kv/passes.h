/* Rows of queries that are computed together, by the registers that there are. */

#ifndef PENSTOCK_PASSES_H
#define PENSTOCK_PASSES_H

#include "../vectors/vectors.h"

#define LINE 64 /* bytes of a cache line */

/* With two times sixteen sums for each row, half of the registers hold sums; the fewest registers hold some of them. */
#define MOST_ROWS (REGISTERS > 8 * PARTS ? REGISTERS / (4 * PARTS) : 2)

/* ONE(rows, first) for `count` rows, as many at a time as MOST_ROWS allows. */
#define IN_PASSES(COUNT, ONE)                                                                                          \
    do {                                                                                                               \
        long pass_row = 0;                                                                                             \
        for (; pass_row + MOST_ROWS <= (COUNT); pass_row += MOST_ROWS)                                                 \
            ONE(MOST_ROWS, pass_row);                                                                                  \
        for (; MOST_ROWS > 4 && pass_row + 4 <= (COUNT); pass_row += 4)                                                \
            ONE((MOST_ROWS > 4 ? 4 : 1), pass_row);                                                                    \
        for (; MOST_ROWS > 2 && pass_row + 2 <= (COUNT); pass_row += 2)                                                \
            ONE((MOST_ROWS > 2 ? 2 : 1), pass_row);                                                                    \
        for (; pass_row < (COUNT); pass_row++)                                                                         \
            ONE(1, pass_row);                                                                                          \
    } while (0);

#endif
