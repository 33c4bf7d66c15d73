"""Memory for what runs beside reading while a model is packed: matrices on their way, and pieces (pure)."""

from dataclasses import dataclass
from typing import Self

from ....tiering.units import MiB

_LEAST = 48 * MiB
"""With less room, nothing runs beside reading: threads have heaps of their own."""
_MOST_MATRICES = 1 << 30
_MOST_PIECES = 32 * MiB
_HEAP = 8 * MiB
"""Bytes that a thread may hold besides its input: arenas of its own, and intermediate results."""


@dataclass(frozen=True, slots=True)
class Aside:
    """Bytes for ``matrices`` that ``threads`` encode ahead, and for ``pieces`` that were read and are not written."""

    matrices: int
    threads: int
    pieces: int

    @classmethod
    def of(cls, room: int, cores: int) -> Self:
        """A part of ``room`` bytes, for a machine with ``cores``."""
        if room < _LEAST:
            return cls(0, 1, 0)
        share = room // 3
        threads = max(1, min(cores, share // (2 * _HEAP)))
        return cls(min(share - threads * _HEAP, _MOST_MATRICES), threads, min(room // 8, _MOST_PIECES))

    @property
    def total(self) -> int:
        """All bytes, those of the threads' own heaps included."""
        return self.matrices + self.pieces + (self.threads * _HEAP if self.matrices else 0)
