"""Limits the bytes of residuals that are read, and skips those that cannot be read (pure).

Residuals refine a product that can be computed without them, so they are read when a drive is idle. Idle time alone is
no limit: a drive that idles between layers could read as many bytes again as experts take, for a small gain. Where the
caches have room for all experts and all residuals, each is read once, without a limit: in the end every expert in use
is computed with all its planes.
"""

from collections.abc import Mapping

from ...units import BlockId, residuals

MOST_READ = 0.7
"""Most bytes of experts and residuals to read, as a share of reading every expert with all its planes.

For matrices in planes of four bits, residuals then get a quarter of the bytes of the first planes. Bytes read while
there is room for all do not count."""
PAUSE = 64
"""Forwards after which an unreadable residual is tried again."""


class Refinement:
    """The account of residuals: bytes allowed and spent, and blocks that cannot be read."""

    def __init__(self, lengths: Mapping[BlockId, int]) -> None:
        """``lengths`` are the bytes of all blocks, experts and residuals."""
        first = sum(length for block, length in lengths.items() if block.kind == "expert")
        further = sum(length for block, length in lengths.items() if block.kind == "residual")
        self._first, self._further = first, further
        self._has_room = False
        self._per_byte = max(0.0, MOST_READ * (first + further) / first - 1) if first else 0.0
        self._residuals = residuals(lengths)
        self._left = 0.0
        self._forwards = 0
        self._failed: dict[BlockId, int] = {}  # by block, the forward in which it failed

    def residuals(self, block: BlockId) -> tuple[BlockId, ...]:
        """The residuals of ``block``, in the order of their planes."""
        return self._residuals.get(block, ())

    @property
    def has_residuals(self) -> bool:
        """Whether any block has some."""
        return bool(self._residuals)

    def measure(self, experts: int, residuals: int) -> None:
        """The caches have these many bytes from now on."""
        self._has_room = experts >= self._first and residuals >= self._further

    def tick(self) -> None:
        """A forward begins."""
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
