"""Decayed counts of uses, and the resident block with the least count (pure)."""

import heapq
from collections.abc import Iterable, Iterator

from ...units import BlockId

_RARELY = 1e-6
"""Share of forwards assumed for blocks that were never used."""


class Counts:
    """Uses of each block. Every use is worth less by the factor ``decay`` with each forward.

    Counts are not decayed one by one: a use at time t adds ``decay ** -t``. A count is touched only when its block is
    used, and the order of two counts changes only then.
    """

    _LARGEST = 1e100

    def __init__(self, decay: float) -> None:
        assert 0 < decay <= 1
        self._decay, self._weight = decay, 1.0
        self._total = 1.0  # the count of a block used once in every forward
        self._count: dict[BlockId, float] = {}

    def used(self, blocks: Iterable[BlockId]) -> None:
        for block in blocks:
            self._count[block] = self._count.get(block, 0.0) + self._weight

    def of(self, block: BlockId) -> float:
        """The count of ``block``, in a unit that changes when ``tick`` returns True."""
        return self._count.get(block, 0.0)

    def __iter__(self) -> Iterator[float]:
        """All counts."""
        return iter(self._count.values())

    def passed_over(self, count: float) -> float:
        """Forwards that pass on average between two uses of a block with this ``count``."""
        return max(0.0, self._total / max(count, self._total * _RARELY) - 1)

    def tick(self) -> bool:
        """A forward begins. Returns whether all counts were rescaled, in proportion."""
        self._weight /= self._decay
        self._total += self._weight
        if self._weight <= self._LARGEST:
            return False
        self._count = {block: count / self._weight for block, count in self._count.items()}
        self._total /= self._weight
        self._weight = 1.0
        return True


class Least:
    """Resident blocks, the least count first. Stale entries of the heap are corrected when they surface."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._resident: set[BlockId] = set()
        self._heap: list[tuple[float, BlockId]] = []

    def add(self, block: BlockId) -> None:
        self._resident.add(block)
        heapq.heappush(self._heap, (self._counts.of(block), block))

    def remove(self, block: BlockId) -> None:
        self._resident.remove(block)

    def __contains__(self, block: BlockId) -> bool:
        return block in self._resident

    def first(self) -> tuple[float, BlockId] | None:
        """The least count and its block, among those not taken; None if there is none."""
        heap = self._heap
        while heap:
            count, block = heap[0]
            if block not in self._resident:
                heapq.heappop(heap)
                continue
            current = self._counts.of(block)
            if current == count:
                return heap[0]
            heapq.heapreplace(heap, (current, block))  # used since it was pushed
        return None

    def take(self) -> tuple[float, BlockId]:
        """The first block, which must exist. It is not returned again before ``put_back``."""
        entry = heapq.heappop(self._heap)
        while self._heap and self._heap[0] == entry:  # removed and added since
            heapq.heappop(self._heap)
        return entry

    def put_back(self, taken: Iterable[tuple[float, BlockId]]) -> None:
        for entry in taken:
            if entry[1] in self._resident:
                heapq.heappush(self._heap, entry)

    def rebuild(self) -> None:
        """Sort again: every count has changed."""
        self._heap = [(self._counts.of(block), block) for block in self._resident]
        heapq.heapify(self._heap)
