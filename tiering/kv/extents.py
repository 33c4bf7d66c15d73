"""Places of pages on flash (pure). Pages of one block table lie in extents, so that neighbours are read at once."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import count

from ..errors import FlashFull
from ..units import MiB, format_size
from .pages import Page

EXTENT = MiB
"""Bytes of an extent, about: pages of one block table, side by side."""


_Key = tuple[int, int, int, int]
"""Block table, bytes of a page, number of the extent in the block table, and which of the extents of this number."""


@dataclass(slots=True)
class _Extent:
    offset: int
    size: int
    used: int = 0


class Places:
    """Space in a file that grows up to ``limit`` bytes (None: without bound). Freed extents are used again."""

    def __init__(self, limit: int | None) -> None:
        self.length = 0
        """Bytes of the file that have been given out."""
        self.used = 0
        """Bytes of the extents in use."""
        self._limit = limit
        self._extents: dict[_Key, _Extent] = {}
        self._of: dict[int, tuple[_Key, _Extent]] = {}
        self._free: dict[int, list[int]] = {}

    def take(self, page: Page) -> int:
        """Return a place for ``page``, in bytes from the start of the file. Raises FlashFull beyond the limit."""
        size, index = page.size, page.index
        each = max(1, EXTENT // size)
        at = index % each * size
        # A dropped page of the same number may still be written. It keeps its place in an earlier extent.
        keys = ((page.track, size, index // each, turn) for turn in count())
        key = next(key for key in keys if key not in self._extents or self._extents[key].offset + at not in self._of)
        if key not in self._extents:
            self._extents[key] = self._extent(each * size)
        extent = self._extents[key]
        place = extent.offset + at
        self._of[place] = (key, extent)
        extent.used += 1
        return place

    def release(self, place: int) -> None:
        """Give back a place from ``take``."""
        key, extent = self._of.pop(place)
        extent.used -= 1
        if not extent.used:
            del self._extents[key]
            self.used -= extent.size
            self._free.setdefault(extent.size, []).append(extent.offset)

    def check_integrity(self, pages: Collection[Page]) -> None:
        """Raises AssertionError if the books do not agree with ``pages``, all pages that there are."""
        placed = sorted((page for page in pages if page.place is not None), key=lambda page: page.place or 0)
        assert [page.place for page in placed] == sorted(self._of), "places and pages do not agree"
        end = 0
        for page in placed:
            assert page.place is not None
            assert page.place >= end, "places overlap"
            end = page.place + page.size
        assert end <= self.length
        assert sum(extent.used for extent in self._extents.values()) == len(placed)
        assert sum(extent.size for extent in self._extents.values()) == self.used
        free = sum(size * len(offsets) for size, offsets in self._free.items())
        assert self.used + free == self.length

    def _extent(self, size: int) -> _Extent:
        if free := self._free.get(size):
            offset = free.pop()
        else:
            if self._limit is not None and self.length + size > self._limit:
                raise FlashFull(
                    f"the KV of this context takes more flash than [kv] flash allows ({format_size(self._limit)}); "
                    "raise it, or shorten the context"
                )
            offset = self.length
            self.length += size
        self.used += size
        return _Extent(offset, size)
