"""How often blocks were used of late, and which resident one was used least (pure)."""

import heapq
from collections.abc import Iterable

from ...units import BlockId


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

    def used(self, block: BlockId) -> None:
        self._count[block] = self._count.get(block, 0.0) + self._weight

    def of(self, block: BlockId) -> float:
        """In units of their own, which change where ``tick`` says so."""
        return self._count.get(block, 0.0)

    def share(self, count: float) -> float:
        """Of the forwards of late, the share in which a block with this count was used; at most 1."""
        return min(1.0, count / self._total)

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

    def take(self) -> tuple[float, BlockId] | None:
        """The resident block with the least count, with it; not given again before ``put_back``. None if there is no
        other."""
        while self._heap:
            count, block = heapq.heappop(self._heap)
            if block not in self._resident or (self._heap and self._heap[0] == (count, block)):
                continue  # gone, or removed and added since
            current = self._counts.of(block)
            if current == count:
                return count, block
            heapq.heappush(self._heap, (current, block))  # used since it was pushed
        return None

    def put_back(self, taken: Iterable[tuple[float, BlockId]]) -> None:
        for entry in taken:
            if entry[1] in self._resident:
                heapq.heappush(self._heap, entry)

    def rebuild(self) -> None:
        """Every count has changed."""
        self._heap = [(self._counts.of(block), block) for block in self._resident]
        heapq.heapify(self._heap)
