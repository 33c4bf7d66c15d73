"""Joins neighbouring extents into one read (pure)."""

from ..units import Extent


def joins(first: Extent, last: Extent, extent: Extent, *, limit: int) -> bool:
    """Whether a read from ``first`` to ``last`` may go on with ``extent``.

    It may if ``extent`` is next in their file, and the read then has at most ``limit`` bytes.
    """
    return last.file == extent.file and last.end == extent.offset and extent.end - first.offset <= limit
