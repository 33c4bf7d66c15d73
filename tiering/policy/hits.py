"""How often a cache of experts hits under an eviction policy, without drives or time (pure)."""

from collections.abc import Collection, Iterator, Sequence

from ..units import BlockId
from .eviction import Policy
from .eviction.shadow import Shadow
from .prefetch.module_order import Route

Step = Collection[Sequence[BlockId]]
"""A decoded token: the experts that it uses in each layer."""


def misses(make: Policy, slots: int, steps: Collection[Step]) -> Iterator[list[list[BlockId]]]:
    """For each token, for each layer, the experts that are not in one cache of ``slots`` experts over all layers, empty
    at first.

    As the planner does: each token is a tick, each layer asks for its experts at once, and what the layer asks for does
    not go for its sake. An expert that finds no room is used and not kept.
    """
    route = Route(block.module for step in steps for wanted in step for block in wanted)
    cache, stream = Shadow(make(route), slots), 0
    for step in steps:
        route.begin(stream)
        cache.policy.tick()
        missed = []
        for wanted in step:
            if wanted:
                route.reach(stream, wanted[0].module)
            missed.append(cache.use(wanted))
        route.end(stream)
        yield missed


def hit_ratio(make: Policy, slots: int, steps: Collection[Step]) -> float:
    """The share of uses that find their expert in the cache, see ``misses``; 1 without a use."""
    uses = sum(len(wanted) for step in steps for wanted in step)
    missed = sum(len(absent) for layers in misses(make, slots, steps) for absent in layers)
    return 1 - missed / uses if uses else 1.0
