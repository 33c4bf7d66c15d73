"""How often a cache of experts hits under an eviction policy, without drives or time (pure)."""

from collections.abc import Callable, Collection, Iterable
from contextlib import closing

from ..units import BlockId
from .eviction import Eviction

Step = Iterable[Collection[BlockId]]
"""A decoded token: the experts that it uses in each layer."""


def hit_ratio(policy: Eviction, slots: int, steps: Iterable[Step]) -> float:
    """The share of uses that find their expert in one cache of ``slots`` experts over all layers, empty at first.

    As the planner does: each token is a tick, each layer asks for its experts at once, and what the layer asks for does
    not go for its sake. An expert that finds no room is used and not kept. Without a use it is 1.
    """
    resident: set[BlockId] = set()
    hits = uses = 0
    for step in steps:
        policy.tick()
        for wanted in step:
            absent = []
            for block in wanted:
                policy.used(block)
                if block not in resident:
                    absent.append(block)
            uses += len(wanted)
            hits += len(wanted) - len(absent)
            for block in absent:
                if len(resident) < slots or _make_room(policy, resident, wanted):
                    resident.add(block)
                    policy.inserted(block)
    return hits / uses if uses else 1.0


def hit_ratios(
    policies: dict[str, Callable[[], Eviction]], slots: Iterable[int], steps: Collection[Step]
) -> dict[str, list[float]]:
    """``hit_ratio`` for each of ``slots``, by the policy's name."""
    sizes = list(slots)
    return {name: [hit_ratio(make(), size, steps) for size in sizes] for name, make in policies.items()}


def _make_room(policy: Eviction, resident: set[BlockId], wanted: Collection[BlockId]) -> bool:
    """Evict the first that is not ``wanted``; whether there was one."""
    with closing(policy.victims()) as victims:
        for victim in victims:
            if victim not in wanted:
                resident.remove(victim)
                policy.removed(victim)
                return True
    return False
