"""How many bytes of residuals may be read, and which are worth trying (pure).

Residuals refine what can be computed without them: they are read when a drive has nothing else to do. Time alone is
no bound: a drive that idles between layers could read as much again as experts take, for a finer token now and then.
Where the caches have room for all experts and all residuals, each is read once, and nothing bounds them: in the end
every expert that is used is computed with all its planes.
"""

from collections.abc import Mapping

from ...units import BlockId, residuals

MOST_READ = 0.7
"""Bytes of experts and their residuals that are read at most, as a share of what reading all of each expert would take:
below it, computing with less is worth it. Of matrices in planes of four bits that leaves a quarter of what the first
planes take. What is read while there is room for all does not count."""
PAUSE = 64
"""Forwards after which a residual that could not be read is tried again."""


class Refinement:
    """Which residuals there are; bytes of them that are allowed, spent and left; those that cannot be read."""

    def __init__(self, lengths: Mapping[BlockId, int]) -> None:
        """``lengths`` in bytes, of all blocks."""
        first = sum(length for block, length in lengths.items() if block.kind == "expert")
        further = sum(length for block, length in lengths.items() if block.kind == "residual")
        self._first, self._further = first, further
        self._has_room = False
        self._per_byte = max(0.0, MOST_READ * (first + further) / first - 1) if first else 0.0
        self._residuals = residuals(lengths)
        self._left = 0.0
        self._forwards = 0
        self._failed: dict[BlockId, int] = {}  # in which forward

    def residuals(self, block: BlockId) -> tuple[BlockId, ...]:
        """Those of ``block``, in the order of their planes."""
        return self._residuals.get(block, ())

    def measure(self, experts: int, residuals: int) -> None:
        """The caches have so many bytes from now on."""
        self._has_room = experts >= self._first and residuals >= self._further

    def tick(self) -> None:
        """One more forward has begun."""
        self._forwards += 1

    def read(self, block: BlockId, size: int) -> None:
        """``block``, an expert or a residual, of ``size`` bytes, is being read."""
        if not self._has_room:
            self._left += -size if block.kind == "residual" else self._per_byte * size

    def allows(self, block: BlockId, size: int) -> bool:
        """Whether to read the residual ``block`` of ``size`` bytes now."""
        failed = self._failed.get(block)
        return (self._has_room or size <= self._left) and (failed is None or self._forwards - failed >= PAUSE)

    def failed(self, block: BlockId) -> None:
        """The residual ``block`` could not be read."""
        self._failed[block] = self._forwards
