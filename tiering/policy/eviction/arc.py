"""Adaptive replacement: the misses decide between recency and frequency (pure)."""

from collections import OrderedDict
from collections.abc import Generator, Sequence

from ...units import BlockId


class ARC:
    """Keeps two lists, the least recently used block first: blocks used once since they came, and blocks used again.

    It remembers the blocks evicted from each list, as many as fit. A block that comes back shows that its list was too
    short.
    ("ARC: A Self-Tuning, Low Overhead Replacement Cache".)
    """

    name = "arc"

    def __init__(self) -> None:
        self._once: OrderedDict[BlockId, None] = OrderedDict()
        self._again: OrderedDict[BlockId, None] = OrderedDict()
        self._gone_once: OrderedDict[BlockId, None] = OrderedDict()
        self._gone_again: OrderedDict[BlockId, None] = OrderedDict()
        self._target = 0.0  # length that the list of blocks used once should have

    def used(self, blocks: Sequence[BlockId]) -> None:
        for block in blocks:
            if block in self._once:
                del self._once[block]
                self._again[block] = None
            elif block in self._again:
                self._again.move_to_end(block)

    def inserted(self, block: BlockId) -> None:
        gone_once, gone_again = len(self._gone_once), len(self._gone_again)
        if block in self._gone_once:
            self._target = min(float(len(self) + 1), self._target + max(1.0, gone_again / gone_once))
            del self._gone_once[block]
            self._again[block] = None
        elif block in self._gone_again:
            self._target = max(0.0, self._target - max(1.0, gone_once / gone_again))
            del self._gone_again[block]
            self._again[block] = None
        else:
            self._once[block] = None

    def removed(self, block: BlockId) -> None:
        if block in self._once:
            del self._once[block]
            self._gone_once[block] = None
        else:
            del self._again[block]
            self._gone_again[block] = None
        for gone in (self._gone_once, self._gone_again):
            while len(gone) > len(self) + 1:
                gone.popitem(last=False)

    def tick(self) -> None:
        """The order of uses needs no clock."""

    def victims(self) -> Generator[BlockId, None, None]:
        once, again = tuple(self._once), tuple(self._again)
        first = max(0, len(once) - int(self._target))
        yield from once[:first]
        yield from again
        yield from once[first:]

    def __len__(self) -> int:
        return len(self._once) + len(self._again)
