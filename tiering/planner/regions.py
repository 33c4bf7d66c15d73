"""Regions and their limits: which blocks are kept, streamed meanwhile, or have to go (pure).

A block with a place of its own in the arena is *kept* while that place lies below the limit of its region. Beyond the
limit it is streamed as part of the cycle. It returns to its place when that is below the limit again and the block has
left the stream. Any block beyond a limit goes as soon as it is not leased, and its memory with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..events import Discard, Slot
from ..policy.prefetch.cycle import Cycle
from ..units import BlockId, Extent
from .residency import Residency

PINNED, KEPT, STREAM, EXPERTS, RESIDUALS = "pinned", "kept", "stream", "experts", "residuals"
"""The regions of a tier: blocks that are never evicted; dense blocks in places of their own, as many as the limit
allows; dense blocks that stream through; the cache of experts; the cache of their residuals."""


@dataclass(frozen=True, slots=True)
class Home:
    """A block's source (its extent on flash, the number of its drive) and its destination (a region).

    ``place`` is the offset in the arena reserved for this block, if any. A block that is not ``streamable`` can only
    go there.
    """

    extent: Extent
    region: str
    drive: int = 0
    place: int | None = None
    streamable: bool = True


class Limits:
    """Adapts the homes of blocks to the limits of ``residency``."""

    def __init__(self, residency: Residency, homes: Mapping[BlockId, Home], cycle: Cycle) -> None:
        self._residency, self._cycle = residency, cycle
        self.homes = dict(homes)
        """The present home of each block."""
        self.leaving: dict[BlockId, Slot] = {}
        """Blocks beyond their region's limit, with the slots that must become empty."""
        self._placed = {block: home for block, home in homes.items() if home.place is not None}
        self._returning: set[BlockId] = set()  # streamed, though their place is below the limit again
        self._assign()

    def resize(self, limits: Mapping[str, int]) -> list[Discard]:
        """Set the limits of some regions, in bytes. Returns the memory to give back at once."""
        freed = [span for region, limit in limits.items() for span in self._residency.resize(region, limit)]
        self.leaving = {block: slot for block in self._residency.all_beyond() if (slot := self._residency.where(block))}
        self._assign()
        return [Discard(offset, length) for offset, length in freed]

    def _assign(self) -> None:
        """Decide for every block with a place whether it is kept there."""
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
                streamed.append(block)  # read along the cycle until it is resident
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
        """A slot in the block's home, or None if none is free. A place of its own is always free."""
        home = self.homes[block]
        return self._watched(block, self._residency.reserve(block, home.region, home.extent.length, at=home.place))

    def overdraw(self, block: BlockId) -> Slot | None:
        """A slot beyond the limit for as long as it is used, or None if memory has no room."""
        home = self._placed.get(block, self.homes[block])
        length = home.extent.length
        return self._watched(block, self._residency.reserve(block, home.region, length, at=home.place, beyond=True))

    def _watched(self, block: BlockId, slot: Slot | None) -> Slot | None:
        if slot is not None and self._residency.beyond(block):
            self.leaving[block] = slot
        return slot

    def arrived(self, blocks: Iterable[BlockId]) -> None:
        """``blocks`` were read. Blocks in their own place leave the cycle."""
        if here := [b for b in blocks if self.homes[b].place is not None and b in self._cycle]:
            self._cycle.leave(here)

    def gone(self, block: BlockId) -> None:
        """``block`` was evicted, or could not be read."""
        if block in self._returning:
            self._returning.remove(block)
            self.homes[block] = self._placed[block]

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block beyond a limit is in use and known to be leaving."""
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
