"""How many of all pages each layer gets.

A layer whose attention lies on a few pages does without the others; where it is spread out, all are missed. Pages are
dealt so that all layers keep the same share of their attention, as nearly as can be (the idea of "PrefixKV: Adaptive
Prefix KV Cache is What Vision Instruction-Following Models Need for Efficient Generation"). Prompts come layer by
layer: while later layers are not known, the earlier ones have all pages, and give them up then, as in "CAKE: Cascading
and Adaptive KV Cache Eviction with Layer Preferences". One more layer never gives another one more pages.
"""

import heapq
from collections.abc import Sequence


def distribute(needs: Sequence[Sequence[float]], total: int, *, least: int) -> list[int]:
    """Pages for each layer, ``total`` in all, ``least`` or more each; ``needs`` are the masses of attention that the
    pages of each layer got. ``total`` is at least ``least`` for each layer. Pages that no layer has a use for are dealt
    evenly."""
    counts = [least] * len(needs)
    kept: list[tuple[float, int]] = []  # share of its attention, layer
    ranked = [sorted(masses, reverse=True) for masses in needs]
    wholes = [sum(masses) for masses in ranked]
    for layer, masses in enumerate(ranked):
        if len(masses) > least:
            kept.append((_share(sum(masses[:least]), wholes[layer]), layer))
    heapq.heapify(kept)
    left = total - least * len(needs)
    while left and kept:
        share, layer = heapq.heappop(kept)
        more = ranked[layer][counts[layer]]
        counts[layer] += 1
        left -= 1
        if counts[layer] < len(ranked[layer]):
            heapq.heappush(kept, (share + _share(more, wholes[layer]), layer))
    each, rest = divmod(left, max(1, len(needs)))
    return [count + each + (layer < rest) for layer, count in enumerate(counts)]


def _share(mass: float, whole: float) -> float:
    return mass / whole if whole > 0 else 1.0
