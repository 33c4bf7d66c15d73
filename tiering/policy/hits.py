"""How often a cache of experts hits under an eviction policy, without drives or time (pure)."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import closing

from ..units import BlockId
from .eviction import Eviction

Step = Collection[Collection[BlockId]]
"""A decoded token: the experts that it uses in each layer."""


def misses(policy: Eviction, slots: int, steps: Iterable[Step]) -> Iterator[list[list[BlockId]]]:
    """For each token, for each layer, the experts that are not in one cache of ``slots`` experts over all layers, empty
    at first.

    As the planner does: each token is a tick, each layer asks for its experts at once, and what the layer asks for does
    not go for its sake. An expert that finds no room is used and not kept.
    """
    resident: set[BlockId] = set()
    for step in steps:
        policy.tick()
        missed = []
        for wanted in step:
            absent = []
            for block in wanted:
                policy.used(block)
                if block not in resident:
                    absent.append(block)
            missed.append(absent)
            for block in absent:
                if len(resident) < slots or _make_room(policy, resident, wanted):
                    resident.add(block)
                    policy.inserted(block)
        yield missed


def hit_ratio(policy: Eviction, slots: int, steps: Collection[Step]) -> float:
    """The share of uses that find their expert in the cache, see ``misses``; 1 without a use."""
    uses = sum(len(wanted) for step in steps for wanted in step)
    missed = sum(len(absent) for layers in misses(policy, slots, steps) for absent in layers)
    return 1 - missed / uses if uses else 1.0


def _make_room(policy: Eviction, resident: set[BlockId], wanted: Collection[BlockId]) -> bool:
    """Evict the first that is not ``wanted``; whether there was one."""
    with closing(policy.victims()) as victims:
        for victim in victims:
            if victim not in wanted:
                resident.remove(victim)
                policy.removed(victim)
                return True
    return False
