/* Part of a matrix, transposed: sixteen by sixteen numbers at a time. */

#define SIDE 64 /* rows whose numbers lie in one line of memory afterwards, or two */

/* Rows r to r + 15, columns c to c + 15 of `from` [rows, k] become columns r to r + 15 of rows c to c + 15 of `to`. */
INLINE void turn_square(const uint16_t *from, long k, uint16_t *to, long n)
{
    words row[LANES], column[LANES];
    for (int i = 0; i < LANES; i++)
        row[i] = w_load_halves(from + i * k);
    w_transpose(row, column);
    for (int i = 0; i < LANES; i++)
        w_store_halves(to + i * n, column[i]);
}

static APART void turn_rows(const uint16_t *from, long rows, long k, uint16_t *to, long n)
{
    const long whole = rows / LANES * LANES, across = k / LANES * LANES;
    for (long c = 0; c < across; c += LANES)
        for (long r = 0; r < whole; r += LANES)
            turn_square(from + r * k + c, k, to + c * n + r, n);
    for (long r = 0; r < rows; r++)
        for (long c = r < whole ? across : 0; c < k; c++)
            to[c * n + r] = from[r * k + c];
}

/* to[c * n + r] = from[r * k + c] for all r < rows, c < k: numbers of sixteen bits. Up to `threads` threads share the rows.
   Takes: numbers with any bits. Refuses nothing: packed_weight.py made the shapes. */
void EXPORT(transpose)(const uint16_t *from, long rows, long k, uint16_t *to, long n, int threads)
{
    const long blocks = (rows + SIDE - 1) / SIDE;
#pragma omp parallel for num_threads(threads) if (blocks > 1)
    for (long b = 0; b < blocks; b++)
        turn_rows(from + b * SIDE * k, rows - b * SIDE < SIDE ? rows - b * SIDE : SIDE, k, to + b * SIDE, n);
}

#undef SIDE
