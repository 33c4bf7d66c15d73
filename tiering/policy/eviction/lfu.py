"""Least frequently used, with decay (pure)."""

from collections.abc import Generator, Sequence

from ...units import BlockId
from .counts import Counts, Least


class LFU:
    """Evicts the least frequently used block. Counts decay by the factor ``decay`` per forward."""

    name = "lfu"

    def __init__(self, decay: float = 0.98) -> None:
        self._counts = Counts(decay)
        self._least = Least(self._counts)

    def used(self, blocks: Sequence[BlockId]) -> None:
        self._counts.used(blocks)

    def inserted(self, block: BlockId) -> None:
        self._least.add(block)

    def removed(self, block: BlockId) -> None:
        self._least.remove(block)

    def tick(self) -> None:
        if self._counts.tick():
            self._least.rebuild()

    def victims(self) -> Generator[BlockId, None, None]:
        passed = []
        try:
            while (entry := self._least.first()) is not None:
                passed.append(self._least.take())
                yield entry[1]
        finally:
            self._least.put_back(passed)
