"""Which resident block goes first (pure). Policies are told what is used and rank what is here; they never decide
what may go: the planner skips what is leased or loading."""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Generator
from itertools import islice
from typing import Protocol

from ..units import BlockId


class Eviction(Protocol):
    """What the planner asks of an eviction policy. ``used`` also counts for blocks that are not resident."""

    def used(self, block: BlockId) -> None: ...
    def inserted(self, block: BlockId) -> None: ...
    def removed(self, block: BlockId) -> None: ...
    def tick(self) -> None:
        """One more forward has begun."""

    def victims(self) -> Generator[BlockId, None, None]:
        """Resident blocks, the one to go first first. The planner may evict while it iterates."""


class LRU:
    """Least recently used."""

    def __init__(self) -> None:
        self._order: OrderedDict[BlockId, None] = OrderedDict()

    def used(self, block: BlockId) -> None:
        if block in self._order:
            self._order.move_to_end(block)

    def inserted(self, block: BlockId) -> None:
        self._order[block] = None

    def removed(self, block: BlockId) -> None:
        del self._order[block]

    def tick(self) -> None:
        """Recency needs no clock."""

    def victims(self) -> Generator[BlockId, None, None]:
        first = tuple(islice(self._order, 16))  # mostly enough: no need to copy thousands
        yield from first
        yield from tuple(block for block in self._order if block not in first)


class LFU:
    """Least frequently used, with counts that decay by ``decay`` per forward.

    Instead of decaying every count, a use at time t adds ``decay ** -t``: all counts keep their order between uses,
    so a heap with stale entries ranks them in O(log n).
    """

    _LARGEST = 1e100

    def __init__(self, decay: float = 0.98) -> None:
        assert 0 < decay <= 1
        self._decay, self._weight = decay, 1.0
        self._count: dict[BlockId, float] = {}
        self._resident: set[BlockId] = set()
        self._heap: list[tuple[float, BlockId]] = []

    def used(self, block: BlockId) -> None:
        self._count[block] = self._count.get(block, 0.0) + self._weight

    def inserted(self, block: BlockId) -> None:
        self._resident.add(block)
        heapq.heappush(self._heap, (self._count.get(block, 0.0), block))

    def removed(self, block: BlockId) -> None:
        self._resident.remove(block)

    def tick(self) -> None:
        self._weight /= self._decay
        if self._weight > self._LARGEST:
            self._count = {block: count / self._weight for block, count in self._count.items()}
            self._weight = 1.0
            self._heap = [(self._count.get(block, 0.0), block) for block in self._resident]
            heapq.heapify(self._heap)

    def victims(self) -> Generator[BlockId, None, None]:
        passed: list[tuple[float, BlockId]] = []
        seen: set[BlockId] = set()
        try:
            while self._heap:
                count, block = heapq.heappop(self._heap)
                if block not in self._resident or block in seen:
                    continue
                current = self._count.get(block, 0.0)
                if current > count:  # used since it was pushed
                    heapq.heappush(self._heap, (current, block))
                    continue
                seen.add(block)
                passed.append((count, block))
                yield block
        finally:
            for count, block in passed:
                if block in self._resident:
                    heapq.heappush(self._heap, (count, block))


EVICTION: dict[str, Callable[[], Eviction]] = {"auto": LFU, "lru": LRU, "lfu": LFU}
"""Policies by the name they have in the configuration; "auto" is the one that hits most on trained models."""
