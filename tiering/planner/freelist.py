"""Free bytes of a region: first fit over a sorted list of holes (pure)."""

from bisect import bisect_left, insort

from ..units import PAGE


class FreeList:
    """Free space of the ``length`` bytes that start at ``start``. Lengths are PAGE multiples.

    Experts have equal lengths and never fragment. The few large dense blocks of a streaming region are freed in about
    the order in which they were taken, which keeps the holes together.
    """

    def __init__(self, start: int, length: int) -> None:
        self.start, self.length = start, length
        self._holes: list[tuple[int, int]] = [(start, length)] if length else []

    @property
    def free_bytes(self) -> int:
        return sum(length for _, length in self._holes)

    def allocate(self, length: int, *, below: int | None = None) -> int | None:
        """Take ``length`` free bytes that end at or before ``below``. Returns their offset, or None if there are
        none."""
        assert length > 0
        assert length % PAGE == 0
        for index, (offset, hole) in enumerate(self._holes):
            if below is not None and offset + length > below:
                return None
            if hole >= length:
                if hole == length:
                    del self._holes[index]
                else:
                    self._holes[index] = (offset + length, hole - length)
                return offset
        return None

    def take(self, offset: int, length: int) -> None:
        """Take ``length`` bytes at ``offset``, which must be free."""
        index = bisect_left(self._holes, (offset + 1, 0)) - 1
        start, hole = self._holes[index] if index >= 0 else (offset, 0)
        assert offset + length <= start + hole
        rest = [(start, offset - start), (offset + length, start + hole - offset - length)]
        self._holes[index : index + 1] = [(at, left) for at, left in rest if left]

    def release(self, offset: int, length: int) -> None:
        """Give back ``length`` bytes at ``offset``, which were taken."""
        index = bisect_left(self._holes, (offset, 0))
        if index < len(self._holes):
            after, after_length = self._holes[index]
            assert offset + length <= after
            if after == offset + length:
                del self._holes[index]
                length += after_length
        if index > 0:
            before, before_length = self._holes[index - 1]
            assert before + before_length <= offset
            if before + before_length == offset:
                del self._holes[index - 1]
                offset, length = before, before_length + length
        assert self.start <= offset
        assert offset + length <= self.start + self.length
        insort(self._holes, (offset, length))

    def holes(self) -> tuple[tuple[int, int], ...]:
        """The holes as ``(offset, length)``, in order."""
        return tuple(self._holes)
