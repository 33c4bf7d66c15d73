"""Pure decisions that can be swapped: placement, eviction, prefetch."""
