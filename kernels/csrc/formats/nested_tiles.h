/* Positions of the planes of bit-nested matrices, as in formats/nested.py. */

#ifndef PENSTOCK_NESTED_H
#define PENSTOCK_NESTED_H

#include <stdint.h>

#define TILE 16     /* matrix rows */
#define GROUP 32    /* columns with one step and offset */
#define REGISTER 64 /* bytes */

/* The planes of one tile. `low` is null in the format of two planes. A missing plane is null. */
typedef struct {
    const uint8_t *head, *codes, *low, *rest;
} tile;

/* Tile `at` of a matrix of k columns, with its planes' addresses, 0 for a missing one: 2 in format nested, 3 in
   format stacked. */
static inline tile tile_of(const uint64_t *planes, long most, long k, long at)
{
    const int split = most == 3;
    const long columns = split ? 16 : 8, groups = (k + GROUP - 1) / GROUP;
    const long body = (k + columns - 1) / columns * REGISTER;
    const long bytes = 2 * TILE * (groups + 1) + (split ? groups * TILE / 2 : 0);
    const long head = (bytes + REGISTER - 1) / REGISTER * REGISTER;
    const uint8_t *base = (const uint8_t *)planes[0] + at * (head + body);
    const uint8_t *low = split ? (const uint8_t *)planes[1] : 0, *rest = (const uint8_t *)planes[most - 1];
    return (tile){base, base + head, low ? low + at * body : 0, rest ? rest + at * body * (split ? 2 : 1) : 0};
}

#endif
