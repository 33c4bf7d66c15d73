"""Room for blocks that are to be read: which block is evicted for which (pure)."""

from collections.abc import Mapping
from contextlib import closing

from ..events import Action, Discard, Purpose, Slot
from ..policy.eviction import Eviction
from ..policy.prefetch.cycle import Cycle
from ..units import BlockId
from .counters import Counters
from .expectations import Expectations
from .regions import STREAM, Limits
from .residency import Residency


class Room:
    """Reserves slots within the regions' limits, evicting blocks that are neither leased nor loading.

    ``policies`` rank the blocks of each region that evicts. A prefetch never evicts a block that is needed sooner than
    the one that it brings; blocks that a stream expects go only for a demand, and last.
    """

    def __init__(
        self,
        residency: Residency,
        limits: Limits,
        cycle: Cycle,
        policies: Mapping[str, Eviction],
        expectations: Expectations,
        counters: Counters,
    ) -> None:
        self._residency, self._limits, self._cycle = residency, limits, cycle
        self._policies, self._expectations, self._counters = policies, expectations, counters
        self._homes = limits.homes
        self._nearest_evicted = 0

    def begin_pass(self) -> None:
        """Begin a pass of prefetching along the cycle: it brings nothing that is needed later than a block that it
        evicted."""
        self._nearest_evicted = len(self._cycle.order)

    def make(self, block: BlockId, purpose: Purpose) -> Slot | None:
        """A reserved slot for ``block``, or None if the room cannot be made now."""
        region = self._homes[block].region
        ahead = region == STREAM and purpose is not Purpose.DEMAND
        needed_in = self._cycle.distance(block) if ahead else None
        if needed_in is not None and needed_in > self._nearest_evicted:
            return None  # the read under way, for which that block went, ends with another look
        slot = self._limits.reserve(block)
        if slot is not None or region not in self._policies:
            return slot
        awaited: list[BlockId] = []
        with closing(self._policies[region].victims()) as victims:
            for victim in victims:
                if not self._residency.evictable(victim):
                    continue
                if victim in self._expectations:
                    awaited.append(victim)
                    continue
                if needed_in is not None:
                    distance = self._cycle.distance(victim)
                    if distance <= needed_in:
                        return None
                    self._nearest_evicted = min(self._nearest_evicted, distance)
                slot = self._replace(victim, block)
                if slot is not None:
                    return slot
        while awaited and slot is None and purpose is Purpose.DEMAND:
            slot = self._replace(awaited.pop(), block)
        return slot

    def leaves(self, block: BlockId, owed: int) -> bool:
        """Whether a prefetch of ``block`` leaves ``owed`` bytes of its region for blocks that are needed sooner."""
        region, needed_in = self._homes[block].region, self._cycle.distance(block)
        room = self._residency.regions[region].free_bytes - self._homes[block].extent.length
        with closing(self._policies[region].victims()) as victims:
            for victim in victims:
                if room >= owed or self._cycle.distance(victim) <= needed_in:
                    break
                if self._residency.evictable(victim):
                    room += self._homes[victim].extent.length
        return room >= owed

    def clear_out(self, actions: list[Action]) -> None:
        """Evict what lies beyond a limit and is free. Give back the memory of all that is gone from there."""
        leaving = self._limits.leaving
        for block, slot in tuple(leaving.items()):
            if self._residency.evictable(block):
                self._evict(block)
            if self._residency.absent(block):
                del leaving[block]
                actions.append(Discard(slot.offset, slot.length))

    def _replace(self, victim: BlockId, block: BlockId) -> Slot | None:
        """Evict ``victim`` for ``block``; the slot if there is room now."""
        self._evict(victim)
        return self._limits.reserve(block)

    def _evict(self, block: BlockId) -> None:
        slot = self._residency.evict(block)
        if slot.region in self._policies:
            self._policies[slot.region].removed(block)
        self._expectations.evicted(block)
        self._counters.evictions += 1
        self._limits.gone(block)
