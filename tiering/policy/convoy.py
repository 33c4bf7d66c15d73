"""Streams that run at once stay close together, so that what is read for one of them serves them all (pure).

A stream that runs ahead evicts what those behind it come to next; soon everything is read once for each of them. Close
together they all use a block while it is here (sharing one scan among many: "Cooperative Scans: Dynamic Bandwidth
Sharing in a DBMS").
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from ..events import Stream
from ..units import BlockId
from .cycle import Cycle

PATIENCE = 0.25
"""Seconds that a stream ahead of others waits for them before a layer, when none of them moves: what holds them up may
be something else than computing."""


class Convoy:
    """How far the running streams are apart on ``cycle``, whose blocks have ``lengths`` bytes."""

    def __init__(self, cycle: Cycle, lengths: Mapping[BlockId, int]) -> None:
        self._cycle, self._lengths = cycle, lengths
        self._order: Sequence[BlockId] = ()
        self._starts: list[int] = [0]  # of the blocks of that order, and the end

    def lead(self, stream: Stream, block: BlockId) -> int:
        """Bytes by which ``stream``, which comes to ``block`` now, is ahead of the last one that runs; 0 outside."""
        positions, index = self._cycle.positions, self._cycle.index(block)
        if index is None or stream not in positions or len(positions) < 2:
            return 0
        if self._order is not self._cycle.order:
            self._order = self._cycle.order
            self._starts = list(accumulate((self._lengths[block] for block in self._order), initial=0))
        length = self._starts[-1]
        places = {other: self._starts[position] % length for other, position in positions.items()}
        return leads(places | {stream: self._starts[index]}, length)[stream]


def leads(places: Mapping[Stream, int], length: int) -> dict[Stream, int]:
    """How far each stream is ahead of the last one, on a circle of ``length``.

    On a circle everybody is behind everybody. The last one is who has the longest empty stretch behind it: that way
    the least is waited for until all are together.
    """
    taken = sorted(set(places.values()))
    gaps = {after: after - before for before, after in pairwise([taken[-1] - length, *taken])}
    last = max(gaps, key=gaps.__getitem__)
    return {stream: (place - last) % length for stream, place in places.items()}
