"""How often a cache of experts hits under an eviction policy, without drives or time (pure)."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from ..events import Stream
from ..units import BlockId
from .eviction import Policy
from .eviction.shadow import Shadow
from .route import Route

Step = Sequence[Sequence[BlockId]]
"""A decoded token: the experts that it uses in each layer."""

_STREAM: Stream = 0


def misses(policy: Policy, slots: int, layers: Sequence[str], steps: Iterable[Step]) -> Iterator[list[list[BlockId]]]:
    """For each token, for each of ``layers``, modules by path, the experts that are not in one cache of ``slots``
    experts over all layers, empty at first; as the planner would have it for a single stream."""
    route = Route(layers)
    cache = Shadow(policy(route), slots)
    for step in steps:
        route.begin(_STREAM)
        cache.policy.tick()
        missed = []
        for module, wanted in zip(layers, step, strict=True):
            route.reach(_STREAM, module)
            missed.append(cache.use(wanted))
        yield missed
        route.end(_STREAM)


def hit_ratio(policy: Policy, slots: int, layers: Sequence[str], steps: Collection[Step]) -> float:
    """The share of uses that find their expert in the cache, see ``misses``; 1 without a use."""
    uses = sum(len(wanted) for step in steps for wanted in step)
    missed = sum(len(absent) for each in misses(policy, slots, layers, steps) for absent in each)
    return 1 - missed / uses if uses else 1.0
