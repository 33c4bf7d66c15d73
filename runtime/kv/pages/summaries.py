"""Summaries of a sequence's key pages, in memory, in the budget of KV."""

import torch

from ....kernels.kv.summaries.base import Summary
from .pool import PagePool

_STEP = 64
"""Pages that room is made for at a time."""


class PageSummaries:
    """Summaries of ``kind`` of the first ``count`` pages of a track; a page has ``page_bytes``."""

    def __init__(self, pool: PagePool, kind: Summary, page_bytes: int) -> None:
        self.kind, self.count = kind, 0
        self._pool = pool
        self._bytes = torch.empty(0, page_bytes, dtype=torch.uint8)

    @property
    def bytes(self) -> torch.Tensor:
        """uint8 [count, page_bytes]."""
        return self._bytes[: self.count]

    @property
    def taken(self) -> int:
        """Bytes of memory, used or not yet."""
        return self._bytes.numel()

    def make_room(self, count: int) -> None:
        """Have memory for the summaries of ``count`` pages in all. Waits for it, so the caller holds no page: nobody
        else might let go of any. Raises BudgetTooSmall."""
        if count > len(self._bytes):
            more = -(-(count - len(self._bytes)) // _STEP) * _STEP
            self._pool.reserve(more * self._bytes.shape[1])
            self._bytes = torch.cat([self._bytes, self._bytes.new_empty(more, self._bytes.shape[1])])

    def add(self, summaries: torch.Tensor) -> None:
        """Add the summaries of the next pages, uint8 [n, page_bytes]. Raises as ``make_room``."""
        end = self.count + len(summaries)
        self.make_room(end)
        self._bytes[self.count : end] = summaries
        self.count = end

    def cut(self, count: int) -> None:
        """Keep those of the first ``count`` pages."""
        self.count = min(self.count, count)

    def copy(self) -> "PageSummaries":
        """The same for another sequence that begins alike. Raises BudgetTooSmall."""
        other = PageSummaries(self._pool, self.kind, self._bytes.shape[1])
        other.add(self.bytes)
        return other

    def drop(self) -> None:
        """Give the memory back."""
        self._pool.reserve(-self.taken)
        self._bytes, self.count = self._bytes[:0], 0
