"""Eviction by one-bit predictions (pure)."""

from collections import OrderedDict
from collections.abc import Generator, Sequence
from heapq import nlargest
from typing import Protocol

from ...units import BlockId
from .counts import Counts


class Predictor(Protocol):
    """Predicts whether Belady's rule would evict a block before its next use."""

    def discard(self, block: BlockId) -> bool:
        """Whether to discard ``block``. Asked at each use, resident or not."""

    def tick(self, resident: int) -> None:
        """A forward begins with ``resident`` blocks in memory."""


class Rare:
    """Discards every block but the most used ones. As many are kept as are resident."""

    def __init__(self, decay: float = 0.98) -> None:
        self._counts = Counts(decay)
        self._least = 0.0

    def discard(self, block: BlockId) -> bool:
        self._counts.used([block])
        return self._counts.of(block) < self._least

    def tick(self, resident: int) -> None:
        self._counts.tick()
        most = nlargest(resident, self._counts)
        self._least = most[-1] if most and len(most) == resident else 0.0


class Succinct:
    """Evicts blocks predicted to be discarded, then the least recently used ("Paging with Succinct Predictions").

    With right predictions it is as good as the optimum. ``Auto`` guards against wrong ones.
    """

    name = "succinct"

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._bits: dict[BlockId, bool] = {}
        self._keep: OrderedDict[BlockId, None] = OrderedDict()
        self._discard: OrderedDict[BlockId, None] = OrderedDict()

    def used(self, blocks: Sequence[BlockId]) -> None:
        for block in blocks:
            self._bits[block] = self._predictor.discard(block)
            if block in self._keep or block in self._discard:
                self.removed(block)
                self.inserted(block)

    def inserted(self, block: BlockId) -> None:
        (self._discard if self._bits.get(block) else self._keep)[block] = None

    def removed(self, block: BlockId) -> None:
        del (self._discard if block in self._discard else self._keep)[block]

    def tick(self) -> None:
        self._predictor.tick(len(self._keep) + len(self._discard))

    def victims(self) -> Generator[BlockId, None, None]:
        yield from tuple(self._discard)
        yield from tuple(self._keep)
