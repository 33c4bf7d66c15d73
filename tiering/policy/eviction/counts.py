"""How often blocks were used of late, and which resident one was used least (pure)."""

import heapq
from collections.abc import Iterable, Iterator

from ...units import BlockId

_RARELY = 1e-6
"""The share of forwards given to blocks that were never used."""


class Counts:
    """Uses of each block, every one worth less by ``decay`` with each forward.

    Instead of decaying every count, a use at time t adds ``decay ** -t``: between its uses a count need not be touched,
    and the order of two counts changes only when one of the blocks is used.
    """

    _LARGEST = 1e100

    def __init__(self, decay: float) -> None:
        assert 0 < decay <= 1
        self._decay, self._weight = decay, 1.0
        self._total = 1.0  # what a block used once in every forward would have
        self._count: dict[BlockId, float] = {}

    def used(self, blocks: Iterable[BlockId]) -> None:
        for block in blocks:
            self._count[block] = self._count.get(block, 0.0) + self._weight

    def of(self, block: BlockId) -> float:
        """In units of their own, which change where ``tick`` says so."""
        return self._count.get(block, 0.0)

    def __iter__(self) -> Iterator[float]:
        """All counts."""
        return iter(self._count.values())

    def passed_over(self, count: float) -> float:
        """How many forwards pass on average between two uses of a block with this count, from how often it was used of
        late."""
        return max(0.0, self._total / max(count, self._total * _RARELY) - 1)

    def tick(self) -> bool:
        """One more forward has begun. Whether every count has changed, all in proportion."""
        self._weight /= self._decay
        self._total += self._weight
        if self._weight <= self._LARGEST:
            return False
        self._count = {block: count / self._weight for block, count in self._count.items()}
        self._total /= self._weight
        self._weight = 1.0
        return True


class Least:
    """Resident blocks, the one with the least count first. The heap keeps stale entries, corrected when they show."""

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
        """The resident block with the least count, with it; None if there is no other than those taken."""
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
        """The first, which there must be; it is not given again before ``put_back``."""
        entry = heapq.heappop(self._heap)
        while self._heap and self._heap[0] == entry:  # removed and added since
            heapq.heappop(self._heap)
        return entry

    def put_back(self, taken: Iterable[tuple[float, BlockId]]) -> None:
        for entry in taken:
            if entry[1] in self._resident:
                heapq.heappush(self._heap, entry)

    def rebuild(self) -> None:
        """Every count has changed."""
        self._heap = [(self._counts.of(block), block) for block in self._resident]
        heapq.heapify(self._heap)
