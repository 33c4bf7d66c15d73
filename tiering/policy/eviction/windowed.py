"""Least frequently used within a window (pure)."""

from collections import OrderedDict, deque
from collections.abc import Generator, Sequence

from ...units import BlockId


class WindowedLFU:
    """Evicts the block used least in the last ``window`` forwards. Of equals, the least recently used one."""

    name = "windowed-lfu"

    def __init__(self, window: int = 64) -> None:
        assert window > 0
        self._uses: deque[list[BlockId]] = deque([[]], maxlen=window)  # by forward
        self._count: dict[BlockId, int] = {}
        self._resident: dict[int, OrderedDict[BlockId, None]] = {}  # by count

    def used(self, blocks: Sequence[BlockId]) -> None:
        self._uses[-1] += blocks
        for block in blocks:
            self._set(block, self._count.get(block, 0) + 1)

    def inserted(self, block: BlockId) -> None:
        self._resident.setdefault(self._count.get(block, 0), OrderedDict())[block] = None

    def removed(self, block: BlockId) -> None:
        count = self._count.get(block, 0)
        del self._resident[count][block]
        if not self._resident[count]:
            del self._resident[count]

    def tick(self) -> None:
        if len(self._uses) == self._uses.maxlen:
            for block in self._uses.popleft():
                self._set(block, self._count[block] - 1)
        self._uses.append([])

    def victims(self) -> Generator[BlockId, None, None]:
        for count in sorted(self._resident):
            yield from tuple(self._resident.get(count, ()))

    def _set(self, block: BlockId, count: int) -> None:
        resident = block in self._resident.get(self._count.get(block, 0), ())
        if resident:
            self.removed(block)
        self._count[block] = count
        if not count:
            del self._count[block]
        if resident:
            self.inserted(block)
