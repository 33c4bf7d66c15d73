"""Pages of KV and the tracks that they lie in (pure).

A page has the keys, or the values, of a few consecutive tokens of one layer and one sequence. Only the last page of a
track is open: tokens are added to it. A sealed page never changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

_numbers = count()


@dataclass(slots=True, eq=False)
class Page:
    """``size`` bytes, in a ``slot`` of memory, at a ``place`` on flash, or both; offsets in bytes."""

    size: int
    format: object
    """In which the bytes are; who computes on them knows what that means."""
    track: int
    """Number of the track that it was made for."""
    index: int
    """Its number in that track."""
    slot: int | None = None
    place: int | None = None
    stored: bool = False
    """Whether its bytes are at its place."""
    sealed: bool = False
    checksum: int = 0
    passing: bool = False
    """Whether it leaves memory with its last use."""
    leases: int = 0
    """Uses of its bytes in memory under way."""
    attention_score: float = 0.0
    """Attention that it has got; 0 where nobody keeps count."""
    refs: int = 1
    """Tracks that it is in."""
    up: bool = False
    """Whether there is a copy of it on the device."""

    @classmethod
    def gone(cls, track: int, index: int) -> "Page":
        """Stands where a page was dropped that later queries could have seen; nobody looks at it."""
        return cls(0, None, track, index, sealed=True)

    @property
    def is_gone(self) -> bool:
        return self.size == 0

    @property
    def evictable(self) -> bool:
        """Whether it may leave memory, once it is stored."""
        return self.sealed and self.slot is not None and not self.leases


@dataclass(slots=True, eq=False)
class BlockTable:
    """The pages with keys, or with values, of one layer and one sequence, in the order of their tokens.

    ``first`` is the number of the first page here: those before it were dropped, as no query sees them.
    """

    pages: list[Page] = field(default_factory=list)
    first: int = 0
    number: int = field(default_factory=_numbers.__next__)

    @property
    def missing(self) -> list[int]:
        """Which of ``pages`` are not in memory."""
        return [index for index, page in enumerate(self.pages) if page.slot is None]


def runs(pages: Sequence[Page], most: int) -> list[list[Page]]:
    """``pages`` in groups of at most ``most`` bytes, or of one page, whose places follow each other: one read each."""
    found: list[list[Page]] = []
    size = 0
    for page in pages:
        last = found[-1][-1] if found else None
        adjoins = last is not None and last.place is not None and last.place + last.size == page.place
        if adjoins and size + page.size <= most:
            found[-1].append(page)
            size += page.size
        else:
            found.append([page])
            size = page.size
    return found
