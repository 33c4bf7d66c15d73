"""Belady's optimum, for a known future (pure)."""

from collections.abc import Generator, Iterable, Sequence
from itertools import count

from ...units import BlockId


class Belady:
    """Evicts the block whose next use is furthest away. ``future`` holds every use to come, in order.

    It bounds the hit ratio of every other policy ("A study of replacement algorithms for a virtual-storage computer").
    """

    name = "belady"

    def __init__(self, future: Iterable[BlockId]) -> None:
        self._uses: dict[BlockId, list[int]] = {}  # uses to come, the next one last
        uses = list(future)
        for number, block in zip(count(len(uses) - 1, -1), reversed(uses), strict=False):
            self._uses.setdefault(block, []).append(number)
        self._resident: dict[BlockId, None] = {}

    def used(self, blocks: Sequence[BlockId]) -> None:
        for block in blocks:
            self._uses[block].pop()

    def inserted(self, block: BlockId) -> None:
        self._resident[block] = None

    def removed(self, block: BlockId) -> None:
        del self._resident[block]

    def tick(self) -> None:
        """Time is counted in uses."""

    def victims(self) -> Generator[BlockId, None, None]:
        yield from sorted(self._resident, key=self._next_use, reverse=True)

    def _next_use(self, block: BlockId) -> float:
        uses = self._uses.get(block)
        return uses[-1] if uses else float("inf")
