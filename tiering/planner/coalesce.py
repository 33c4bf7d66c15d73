"""Neighbouring extents into reads (pure)."""

from ..units import Extent


def joins(first: Extent, last: Extent, extent: Extent, *, limit: int) -> bool:
    """Whether a read from ``first`` to ``last``, which lie end to end in one file, may go on with ``extent``: it comes
    next in that file, and the read then has at most ``limit`` bytes."""
    return last.file == extent.file and last.end == extent.offset and extent.end - first.offset <= limit
