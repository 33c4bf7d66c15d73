"""Least recently used (pure)."""

from collections import OrderedDict
from collections.abc import Generator, Sequence
from itertools import islice

from ...units import BlockId


class LRU:
    """Evicts the least recently used block."""

    name = "lru"

    def __init__(self) -> None:
        self._order: OrderedDict[BlockId, None] = OrderedDict()

    def used(self, blocks: Sequence[BlockId]) -> None:
        for block in blocks:
            if block in self._order:
                self._order.move_to_end(block)

    def inserted(self, block: BlockId) -> None:
        self._order[block] = None

    def removed(self, block: BlockId) -> None:
        del self._order[block]

    def tick(self) -> None:
        """Recency needs no clock."""

    def victims(self) -> Generator[BlockId, None, None]:
        first = tuple(islice(self._order, 16))  # usually enough, and cheaper than a copy of thousands
        yield from first
        yield from tuple(block for block in self._order if block not in first)
