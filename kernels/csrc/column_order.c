/* Check of an order of columns, before anything follows it. */

#include <stdint.h>
#include <string.h>

/* The first of `columns` columns that `order`, int32 [columns], leaves out, -1 if it has each once. `seen` has a byte
   for each.
   Takes: 4 * columns bytes at any address, with any bytes. Refuses nothing: columns >= 0 are below 2^31. */
int penstock_first_left_out(const uint8_t *order, long columns, uint8_t *seen)
{
    memset(seen, 0, (size_t)columns);
    for (long i = 0; i < columns; i++) {
        uint32_t place;
        memcpy(&place, order + 4 * i, 4);
        if (place < (uint64_t)columns)
            seen[place] = 1;
    }
    const uint8_t *missing = memchr(seen, 0, (size_t)columns);
    return missing ? (int)(missing - seen) : -1;
}
