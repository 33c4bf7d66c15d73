/* The search for the steps and offsets of a group of columns in nest.h, as in formats/steps.py. */

#define NEST_UNIT 16
#define NEST_LEFT 8
#define MOST_CODE 15
#define LARGEST_STEP 255
#define REFINEMENTS 2
#define TINY 1e-12f
#define NEST_SUMS 4 /* partial sums, of every fourth column, added at the end */

#define EACH(COLUMN) for (int COLUMN = 0; COLUMN < GROUP; COLUMN++)

/* One group of columns of a tile. Each lane is a row. */
struct nest_group {
    float counts[GROUP];                        /* weight of each column */
    floats integers[GROUP], weights[GROUP];     /* weights count from the centre */
    floats centre;                              /* of the integers */
    floats most_offset, least_end, least_steps; /* bounds within which all rests fit */
    floats total, first, second;                /* sums of counts, and of these times weights and their squares */
};

/* Steps in units of 1 / NEST_UNIT, offsets from the centre, error; the best step and offset for the codes. */
struct candidate {
    floats steps, offsets, error, slope, at_zero;
};

struct nest_line {
    floats slope, at_zero;
};

struct nest_sums {
    floats each[NEST_SUMS];
};

INLINE floats within(floats a, floats least, floats most) { return f_min(f_max(a, least), most); }
INLINE floats f_times(floats a, float number) { return f_mul(a, f_all(number)); }
INLINE floats f_plus(floats a, float number) { return f_add(a, f_all(number)); }

/* The nearest integers to codes times steps. */
INLINE floats nearest_to_code(floats steps, floats codes)
{
    return f_floor(f_plus(f_mul(f_times(steps, 1.0f / NEST_UNIT), codes), 0.5f));
}

INLINE void add_term(struct nest_sums *to, int column, floats term)
{
    if (column < NEST_SUMS)
        to->each[column] = term;
    else
        to->each[column % NEST_SUMS] = f_add(to->each[column % NEST_SUMS], term);
}

INLINE floats sum_of_terms(const struct nest_sums *of)
{
    return f_add(f_add(of->each[0], of->each[2]), f_add(of->each[1], of->each[3]));
}

/* The line through the weights over numbers, from the sums of these, their squares, and their products with weights. */
INLINE struct nest_line through(const struct nest_group *of, floats first, floats second, floats both)
{
    const floats varied = f_max(f_sub(f_mul(second, of->total), f_mul(first, first)), f_all(TINY));
    const floats slope = f_div(f_sub(f_mul(both, of->total), f_mul(first, of->first)), varied);
    const floats rest = f_sub(of->first, f_mul(slope, first));
    return (struct nest_line){slope, f_div(rest, f_max(of->total, f_all(TINY)))};
}

INLINE struct candidate tried(const struct nest_group *of, floats step, floats offset)
{
    struct candidate found;
    const floats steps = within(f_round(f_times(step, NEST_UNIT)), of->least_steps, f_all(LARGEST_STEP));
    const floats lowest = f_sub(of->least_end, nearest_to_code(steps, f_all(MOST_CODE)));
    const floats offsets = within(f_round(offset), lowest, of->most_offset);
    found.steps = steps;
    found.offsets = f_sub(within(f_add(offsets, of->centre), f_all(-128), f_all(127)), of->centre);

    const floats by = f_times(steps, 1.0f / NEST_UNIT), inverse = f_div(f_all(NEST_UNIT), steps);
    const floats shift = f_mul(found.offsets, inverse);
    struct nest_sums codes, squares, products;
#pragma GCC unroll 32
    EACH(j) {
        const floats unrounded = f_sub(f_mul(of->weights[j], inverse), shift);
        const floats code = within(f_round(unrounded), f_all(0), f_all(MOST_CODE)), counted = f_times(code, of->counts[j]);
        add_term(&codes, j, counted);
        add_term(&squares, j, f_mul(code, counted));
        add_term(&products, j, f_mul(unrounded, counted));
    }
    const floats first = sum_of_terms(&codes), second = sum_of_terms(&squares), both = sum_of_terms(&products);
    const floats crossed = f_mul(f_times(found.offsets, 2), of->first);
    const floats squared = f_mul(f_mul(found.offsets, found.offsets), of->total);
    const floats moved = f_add(f_sub(of->second, crossed), squared);
    found.error = f_add(moved, f_mul(f_mul(by, by), f_sub(second, f_times(both, 2))));
    const struct nest_line best = through(of, first, second, f_add(f_mul(by, both), f_mul(found.offsets, first)));
    found.slope = best.slope;
    found.at_zero = best.at_zero;
    return found;
}

INLINE struct candidate better(struct candidate one, struct candidate other)
{
    const words less = f_less(other.error, one.error);
    return (struct candidate){
        f_choose(less, other.steps, one.steps), f_choose(less, other.offsets, one.offsets),
        f_choose(less, other.error, one.error), f_choose(less, other.slope, one.slope),
        f_choose(less, other.at_zero, one.at_zero)};
}

static struct candidate best_candidate(const struct nest_group *of)
{
    static const float part[2] = {1.0 / MOST_CODE, 0.9 / MOST_CODE}, edge[2] = {(1 - 1.0) / 2, (1 - 0.9) / 2};
    floats least = of->weights[0], most = least;
    for (int j = 1; j < GROUP; j++) {
        least = f_min(least, of->weights[j]);
        most = f_max(most, of->weights[j]);
    }
    const floats width = f_sub(most, least);
    struct candidate found = tried(of, f_times(width, part[0]), f_add(least, f_times(width, edge[0])));
    found = better(found, tried(of, f_times(width, part[1]), f_add(least, f_times(width, edge[1]))));
    for (int i = 0; i < REFINEMENTS; i++)
        found = better(found, tried(of, found.slope, found.at_zero));
    return found;
}
