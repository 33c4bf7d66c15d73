"""Pages of KV and the block tables that list them (pure).

A page has the keys, or the values, of a few consecutive tokens of one layer and one sequence. Only the last page of a
block table is open: tokens are added to it. A sealed page never changes.

The states of a page and their steps are the tables MEMORY and FLASH in books.py.
The planner (``planner.py``) alone writes to a page's fields. Everybody may read them. Only of a page that is held, or
open, do they stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

InMemory = Literal["new", "open", "kept", "absent", "coming", "read", "passing", "freed"]
"""Where a page stands in host memory: the table MEMORY of books.py has the steps."""

OnFlash = Literal["nowhere", "queued", "writing", "stored"]
"""Where its bytes stand on flash: the table FLASH of books.py has the steps."""

_numbers = count()


@dataclass(slots=True, eq=False)
class Page:
    """``size`` bytes, in a ``slot`` of memory, at a ``place`` on flash, or both; offsets in bytes."""

    size: int
    format: object
    """In which the bytes are; who computes on them knows what that means."""
    track: int
    """Number of the block table that it was made for."""
    index: int
    """Its number in that table."""
    attention_score: float = 0.0
    """Attention that it has got; 0 where nobody keeps count."""
    memory: InMemory = "new"
    flash: OnFlash = "nowhere"
    slot: int | None = None
    place: int | None = None
    leases: int = 0
    """Uses of its bytes in memory under way."""
    refs: int = 1
    """Block tables that it is in."""
    up: bool = False
    """Whether there is a copy of it on the device."""

    @classmethod
    def gone(cls, track: int, index: int) -> "Page":
        """Stands where a page was dropped that later queries could have seen; nobody looks at it."""
        return cls(0, None, track, index, memory="freed")

    @property
    def is_gone(self) -> bool:
        """Whether it only stands for a page that was dropped."""
        return self.size == 0

    @property
    def sealed(self) -> bool:
        """Whether it is full and will not change."""
        return self.memory != "open" and self.memory != "new"

    @property
    def stored(self) -> bool:
        """Whether its bytes are at its place."""
        return self.flash == "stored"

    @property
    def passing(self) -> bool:
        """Whether its slot is one of those that pages pass through."""
        return self.memory in ("coming", "read", "passing")

    @property
    def evictable(self) -> bool:
        """Whether it may leave memory, once it is stored."""
        return self.memory == "kept" and not self.leases


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
