"""The order of experts on flash, from a routing trace, and what it saves (pure).

The order is made from the first half of the trace. The second half says what it saves: reads of experts that are not in
a cache of a quarter of all experts. Only layers where that is enough get an order of their own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ....tiering.policy.eviction import EVICTION
from ....tiering.policy.expert_order import Gain, count_pairs, gain, order_by_use
from ....tiering.policy.hits import misses
from ....tiering.store.bundle.manifest import Block
from ....tiering.units import BlockId, MiB

READ_LIMIT = MiB
"""Bytes of a read at which drives reach their full speed. Larger experts gain nothing from neighbours."""
_CACHED = 4
"""One in this many experts is taken to be in memory."""


class TracedLayer(Protocol):
    """The experts module at ``path``, of ``experts`` experts."""

    @property
    def path(self) -> str:
        """Its path in the model."""
        ...

    @property
    def experts(self) -> int:
        """How many experts it has."""
        ...


class RoutingTrace(Protocol):
    """What is read of a routing trace (``routing.routes.Routes``)."""

    @property
    def layers(self) -> Sequence[TracedLayer]:
        """The layers with experts, in order."""
        ...

    def steps(self) -> Iterator[list[tuple[BlockId, ...]]]:
        """The experts that each forward used, for each of ``layers``."""
        ...


@dataclass(frozen=True, slots=True)
class ExpertOrder:
    """The orders of experts that pay, and what they and all others would save, by module path."""

    orders: Mapping[str, Sequence[int]]
    gains: Mapping[str, Gain]


def order_experts(routes: RoutingTrace, blocks: Iterable[Block]) -> ExpertOrder:
    """For the experts among ``blocks``, which are those of the model that ``routes`` was recorded with."""
    lengths = {block.id.module: block.extent.length for block in blocks if block.id.kind == "expert"}
    if all(READ_LIMIT // length < 2 for length in lengths.values()):
        return ExpertOrder({}, {})
    steps = list(routes.steps())
    half = len(steps) // 2
    slots = max(1, sum(layer.experts for layer in routes.layers) // _CACHED)
    missed = list(misses(EVICTION["auto"], slots, steps))[half:]
    orders, gains = {}, {}
    for number, layer in enumerate(routes.layers):
        used = [[block.part for block in step[number]] for step in steps[:half]]
        order = order_by_use(count_pairs(used, layer.experts))
        read = [[block.part for block in step[number]] for step in missed if step[number]]
        found = gain(read, order, expert_bytes=lengths[layer.path], read_limit=READ_LIMIT)
        gains[layer.path] = found
        if found.worth_it:
            orders[layer.path] = order
    return ExpertOrder(orders, gains)
