"""Residency: the slot and the leases of each block in one tier (pure).

A block in a tier is in one of three states::

    absent  --reserve-->  loading  --arrive-->  ready  --evict-->  absent
                             `-----abandon----->  absent

Only a ready block can be leased, and only a ready block without leases can be evicted. A block keeps its slot from
``reserve`` on. Every region is a budget of its own: the sum of its slots never passes its capacity.

A region may have a limit below its capacity. Then only its beginning is in use: new slots lie below the limit, blocks
already beyond it must go, and the memory there is given back in one piece, in whole huge pages.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ..events import Slot, Stream
from ..units import BlockId
from .freelist import FreeList


class Region:
    """A named part of a tier's arena, ``capacity`` bytes from ``start`` of which the first ``limit`` may be used."""

    def __init__(self, name: str, start: int, capacity: int) -> None:
        self.name, self.start, self.capacity = name, start, capacity
        self.limit = capacity
        self.space = FreeList(start, capacity)
        self.blocks: set[BlockId] = set()

    @property
    def end(self) -> int:
        """Offset in the arena at which the part in use ends."""
        return self.start + self.limit

    @property
    def free_bytes(self) -> int:
        """Free bytes of the part in use."""
        return sum(max(0, min(offset + length, self.end) - offset) for offset, length in self.space.holes())


class Residency:
    """Slots and leases of one tier."""

    def __init__(self, name: str, regions: Mapping[str, int]) -> None:
        """``regions`` maps region names to capacities in bytes (PAGE multiples), laid one after the other."""
        self.name = name
        self.regions: dict[str, Region] = {}
        start = 0
        for region, capacity in regions.items():
            self.regions[region] = Region(region, start, capacity)
            start += capacity
        self.capacity = start
        self._slots: dict[BlockId, Slot] = {}
        self._loading: set[BlockId] = set()
        self._leases: Counter[BlockId] = Counter()
        self._held: dict[Stream, Counter[BlockId]] = {}
        self.used_bytes = 0

    # --- looking ----------------------------------------------------------------------------------------------------

    def slot(self, block: BlockId) -> Slot | None:
        """The block's slot if it is ready, else None."""
        return None if block in self._loading else self._slots.get(block)

    def where(self, block: BlockId) -> Slot | None:
        """The block's slot, ready or not."""
        return self._slots.get(block)

    def count(self, region: str) -> int:
        """The number of blocks in ``region`` that are ready or being read."""
        return len(self.regions[region].blocks) if region in self.regions else 0

    def absent(self, block: BlockId) -> bool:
        """Whether the block has no slot."""
        return block not in self._slots

    def loading(self, block: BlockId) -> bool:
        """Whether the block has a slot and is not ready yet."""
        return block in self._loading

    def evictable(self, block: BlockId) -> bool:
        """Whether the block is ready and not leased."""
        return block in self._slots and block not in self._loading and block not in self._leases

    def held(self, stream: Stream) -> Mapping[BlockId, int]:
        """Leases of one stream: block to count."""
        return self._held.get(stream, Counter())

    def holders(self, region: str) -> Iterator[Stream]:
        """The streams that hold a lease in ``region``."""
        inside = self.regions[region].blocks
        return (stream for stream, held in self._held.items() if any(block in inside for block in held))

    def beyond(self, block: BlockId) -> bool:
        """Whether the block lies, in part, beyond the limit of its region."""
        slot = self._slots.get(block)
        return slot is not None and slot.offset + slot.length > self.regions[slot.region].end

    def all_beyond(self) -> Iterator[BlockId]:
        """The blocks that lie beyond the limit of their region."""
        return filter(self.beyond, self._slots)

    # --- transitions ------------------------------------------------------------------------------------------------

    def reserve(
        self, block: BlockId, region: str, length: int, *, at: int | None = None, beyond: bool = False
    ) -> Slot | None:
        """absent -> loading; None if the region has no hole of ``length`` bytes below its limit.

        With ``at``, an offset in the arena, the block gets that place, which must be free, on either side of the limit.
        With ``beyond`` the limit does not count.
        """
        assert block not in self._slots
        home = self.regions[region]
        if at is not None:
            home.space.take(at, length)
            offset: int | None = at
        else:
            offset = home.space.allocate(length, below=None if beyond else home.end)
        if offset is None:
            return None
        self.used_bytes += length
        slot = self._slots[block] = Slot(region, offset, length)
        self._loading.add(block)
        home.blocks.add(block)
        return slot

    def arrive(self, block: BlockId) -> Slot:
        """loading -> ready."""
        self._loading.remove(block)
        return self._slots[block]

    def abandon(self, block: BlockId) -> None:
        """loading -> absent."""
        self._loading.remove(block)
        self._drop(block)

    def evict(self, block: BlockId) -> Slot:
        """ready -> absent, never under a lease. Returns the slot that it had."""
        assert self.evictable(block)
        return self._drop(block)

    def lease(self, block: BlockId, stream: Stream) -> None:
        """One more lease of ``stream`` on ``block``, which is ready."""
        self.lease_all((block,), stream)

    def lease_all(self, blocks: Sequence[BlockId], stream: Stream) -> None:
        """One more lease of ``stream`` on each of ``blocks``, which are ready."""
        slots, loading, leases = self._slots, self._loading, self._leases
        held = self._held.get(stream)
        if held is None:
            held = self._held[stream] = Counter()
        for block in blocks:
            assert block in slots
            assert block not in loading
            leases[block] = leases.get(block, 0) + 1
            held[block] = held.get(block, 0) + 1

    def release(self, block: BlockId, stream: Stream) -> None:
        """One lease of ``stream`` on ``block`` less."""
        self.release_all((block,), stream)

    def release_all(self, blocks: Sequence[BlockId], stream: Stream) -> None:
        """One lease of ``stream`` on each of ``blocks`` less."""
        if not blocks:
            return
        held, leases = self._held[stream], self._leases
        for block in blocks:
            assert block in held
            for counter in (held, leases):
                left = counter[block] - 1
                if left:
                    counter[block] = left
                else:
                    dict.__delitem__(counter, block)
        if not held:
            del self._held[stream]

    def resize(self, region: str, limit: int) -> list[tuple[int, int]]:
        """Set the limit in bytes. Returns the spans (offset, length) beyond it that are free memory now."""
        home = self.regions[region]
        assert 0 <= limit <= home.capacity
        before, home.limit = home.end, limit
        cut = ((max(offset, home.end), min(offset + length, before)) for offset, length in home.space.holes())
        return [(start, end - start) for start, end in cut if start < end]

    def _drop(self, block: BlockId) -> Slot:
        slot = self._slots.pop(block)
        self.used_bytes -= slot.length
        home = self.regions[slot.region]
        home.space.release(slot.offset, slot.length)
        home.blocks.remove(block)
        return slot

    # --- the accounts -----------------------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raise AssertionError unless bytes are conserved, slots disjoint, leases backed and sums equal."""
        for region in self.regions.values():
            spans = sorted((self._slots[block].offset, self._slots[block].length) for block in region.blocks)
            spans += region.space.holes()
            position = region.start
            for offset, length in sorted(spans):
                assert offset == position, f"{self.name}/{region.name}: gap or overlap at {position}"
                position += length
            assert position == region.start + region.capacity, f"{self.name}/{region.name}: bytes lost"
            assert all(self._slots[block].region == region.name for block in region.blocks)
        assert sum(len(region.blocks) for region in self.regions.values()) == len(self._slots)
        assert self.used_bytes == sum(slot.length for slot in self._slots.values())
        assert self._loading <= self._slots.keys()
        assert all(count > 0 and self.slot(block) is not None for block, count in self._leases.items())
        total: Counter[BlockId] = Counter()
        for held in self._held.values():
            total.update(held)
        assert total == self._leases
