"""What the limits of the regions mean for each block (pure): who is kept, who is streamed meanwhile, who has to go.

A block with a place of its own in the arena is *kept* while that place lies below the limit of its region. Beyond it,
it is streamed like the others, as part of the cycle, and returns to its place once that is below the limit again and
the block has left the stream. Any block beyond a limit goes as soon as nobody holds it, and its memory with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..events import Discard, Slot
from ..policy.prefetch.cycle import Cycle
from ..units import BlockId, Extent
from .residency import Residency

PINNED, KEPT, STREAM, EXPERTS, RESIDUALS = "pinned", "kept", "stream", "experts", "residuals"
"""The regions of a tier: never evicted; dense blocks in places of their own, as many as the limit allows; dense blocks
passing through; the cache of experts; that of further planes of experts which can be computed without them."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where a block comes from (its extent on flash, the number of its drive) and where it goes (a region).

    ``place`` is the offset in the arena that is there for it alone, if any. If it is not ``streamable`` it goes nowhere
    else.
    """

    extent: Extent
    region: str
    drive: int = 0
    place: int | None = None
    streamable: bool = True


class Limits:
    """Keeps the homes of the blocks in line with the limits of ``residency``."""

    def __init__(self, residency: Residency, homes: Mapping[BlockId, Home], cycle: Cycle) -> None:
        self._residency, self._cycle = residency, cycle
        self.homes = dict(homes)
        """Where each block goes now."""
        self.leaving: dict[BlockId, Slot] = {}
        """Blocks beyond their region's limit, and the slots that are to be empty soon."""
        self._placed = {block: home for block, home in homes.items() if home.place is not None}
        self._returning: set[BlockId] = set()  # in the stream, though their place is there for them again
        self._assign()

    def resize(self, limits: Mapping[str, int]) -> list[Discard]:
        """Set the limits of some regions, in bytes. The memory to be given back at once."""
        freed = [span for region, limit in limits.items() for span in self._residency.resize(region, limit)]
        self.leaving = {block: slot for block in self._residency.all_beyond() if (slot := self._residency.where(block))}
        self._assign()
        return [Discard(offset, length) for offset, length in freed]

    def _assign(self) -> None:
        """Decide of every block with a place whether it is kept there."""
        self._returning.clear()
        streamed: list[BlockId] = []
        kept: list[BlockId] = []
        for block, home in self._placed.items():
            where = self._residency.where(block)
            self.homes[block] = home
            if not self._below(home):
                if home.streamable:
                    self.homes[block] = replace(home, region=STREAM, place=None)
                (streamed if home.streamable else kept).append(block)
            elif where is None:
                streamed.append(block)  # read along the cycle until it is here
            elif where.offset == home.place:
                kept.append(block)
            else:
                self.homes[block] = replace(home, region=STREAM, place=None)
                self._returning.add(block)
        self._cycle.join(streamed)
        self._cycle.leave(kept)

    def _below(self, home: Home) -> bool:
        assert home.place is not None
        return home.place + home.extent.length <= self._residency.regions[home.region].end

    def reserve(self, block: BlockId) -> Slot | None:
        """A slot in the block's home, if there is one free; a place of its own always is."""
        home = self.homes[block]
        return self._watched(block, self._residency.reserve(block, home.region, home.extent.length, at=home.place))

    def overdraw(self, block: BlockId) -> Slot | None:
        """A slot beyond the limit, for as long as it is used, if the memory behind it is there."""
        home = self._placed.get(block, self.homes[block])
        length = home.extent.length
        return self._watched(block, self._residency.reserve(block, home.region, length, at=home.place, beyond=True))

    def _watched(self, block: BlockId, slot: Slot | None) -> Slot | None:
        if slot is not None and self._residency.beyond(block):
            self.leaving[block] = slot
        return slot

    def arrived(self, blocks: Iterable[BlockId]) -> None:
        """``blocks`` have been read: those in their own place need not be read along the cycle any more."""
        if here := [b for b in blocks if self.homes[b].place is not None and b in self._cycle]:
            self._cycle.leave(here)

    def gone(self, block: BlockId) -> None:
        """``block`` was evicted, or could not be read."""
        if block in self._returning:
            self._returning.remove(block)
            self.homes[block] = self._placed[block]

    def check_integrity(self) -> None:
        """Raise AssertionError unless all that lies beyond a limit is in use and known to be leaving."""
        beyond = {block: self._residency.where(block) for block in self._residency.all_beyond()}
        assert beyond == self.leaving
        assert not any(self._residency.evictable(block) for block in beyond)
        for block, home in self._placed.items():
            where = self._residency.where(block)
            if where is not None and where.offset == home.place and self._below(home):
                assert self.homes[block] == home
            if self._below(home) and where is None:
                assert self.homes[block] == home
            if not self._below(home):
                assert (self.homes[block].region == STREAM) == home.streamable
