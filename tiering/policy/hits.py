"""Hit ratio of a cache of experts under an eviction policy, without drives or time (pure)."""

from collections.abc import Collection, Iterator, Sequence

from ..units import BlockId
from .eviction import Policy
from .eviction.shadow import Shadow
from .prefetch.route import Route

TokenExperts = Collection[Sequence[BlockId]]
"""One decoded token: the experts used in each layer."""


def misses(make: Policy, slots: int, steps: Collection[TokenExperts]) -> Iterator[list[list[BlockId]]]:
    """For each token and layer, the experts that miss one cache of ``slots`` experts over all layers, empty at first.

    It follows the planner: each token is a tick, a layer asks for its experts at once, and never evicts its own. An
    expert that finds no room is used and not kept.
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


def hit_ratio(make: Policy, slots: int, steps: Collection[TokenExperts]) -> float:
    """Share of uses that hit, see ``misses``; 1 without a use."""
    uses = sum(len(wanted) for step in steps for wanted in step)
    missed = sum(len(absent) for layers in misses(make, slots, steps) for absent in layers)
    return 1 - missed / uses if uses else 1.0
