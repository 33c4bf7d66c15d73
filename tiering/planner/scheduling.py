"""Turns demand and expectations into reads, as far as drives and memory have room (pure).

The order: demand; dense blocks that come next in the cycle; experts that are certain; guesses; residuals. A block whose
drive is busy is passed over, so that a slow drive does not hold up the others. Which submitted read goes to the drive
first is decided in kernels/io/reading.py.
"""

from collections.abc import Iterable, Iterator, Set

from ..errors import UnplaceableModule
from ..events import COPY_STREAM, Action, Part, Purpose, Read, Refuse, Stream
from ..policy.prefetch.cycle import Cycle
from ..policy.prefetch.refinement import Refinement
from ..units import BlockId, format_size
from .coalesce import joins
from .counters import Counters
from .deadlock import stuck
from .evicting import Room
from .expectations import Expectations
from .inflight import InFlight
from .regions import EXPERTS, RESIDUALS, STREAM, Limits
from .requests import Requests
from .residency import Residency


class Scheduler:
    """Starts reads. Neighbours on flash join into reads of at most ``read_limit`` bytes."""

    def __init__(
        self,
        residency: Residency,
        limits: Limits,
        requests: Requests,
        room: Room,
        *,
        cycle: Cycle,
        expectations: Expectations,
        refinement: Refinement,
        in_flight: InFlight,
        counters: Counters,
        read_limit: int,
    ) -> None:
        self.unreadable: set[BlockId] = set()
        """Blocks whose read failed, and which nobody has asked for since: they are not prefetched."""
        self._residency, self._limits, self._requests, self._room = residency, limits, requests, room
        self._homes = limits.homes
        self._cycle, self._expectations, self._refinement = cycle, expectations, refinement
        self._in_flight, self._counters, self._read_limit = in_flight, counters, read_limit

    def schedule(self, actions: list[Action], now: float) -> None:
        """Append to ``actions`` the reads that can start at ``now``, and the refusals that end a deadlock."""
        queue, in_flight = self._requests.queue, self._in_flight
        if queue and in_flight.has_room:
            self._issue(tuple(queue), actions, now, Purpose.DEMAND)
            if queue and in_flight.has_room:
                self._untangle(actions, now)
        if in_flight.has_room and all(map(self._leaves_others_alone, queue)):
            self._room.begin_pass()
            self._issue(self._unread(self._cycle.upcoming()), actions, now, Purpose.CERTAIN)
            for purpose in (Purpose.CERTAIN, Purpose.GUESS) if self._expectations else ():
                if not queue and in_flight.has_room:
                    self._issue(self._unread(self._expectations.of(purpose)), actions, now, purpose)
            if self._expectations and not queue:
                self._refine(actions, now)

    def _refine(self, actions: list[Action], now: float) -> None:
        """Read residuals that are of use now, one on each drive that has nothing to read.

        A demand that comes meanwhile finds at most one read before it.
        """
        for block in self._unread(self._expectations.of(Purpose.REFINE)):
            home = self._homes[block]
            if not self._in_flight.is_idle(home.drive) or not self._refinement.allows(block, home.extent.length):
                continue
            slot = self._room.make(block, Purpose.REFINE)
            if slot is None:
                break
            self._start([Part(block, home.extent, slot)], actions, now, Purpose.REFINE)

    def _unread(self, blocks: Iterable[BlockId]) -> Iterator[BlockId]:
        """Those of ``blocks`` worth prefetching."""
        return (block for block in blocks if self._residency.absent(block) and block not in self.unreadable)

    def _is_busy(self, block: BlockId) -> bool:
        """Whether the drive of ``block`` has as many reads as it may have."""
        return self._in_flight.is_busy(self._homes[block].drive)

    def _leaves_others_alone(self, block: BlockId) -> bool:
        """Whether ``block``, in demand, only waits for its drive: prefetches on the others take nothing from it."""
        return self._is_busy(block) and self._homes[block].region != STREAM

    def _issue(self, blocks: Iterable[BlockId], actions: list[Action], now: float, purpose: Purpose) -> None:
        """Read ``blocks``, in this order, until drives or memory have no room."""
        full: set[str] = set()
        runs: dict[int, list[Part]] = {}  # by drive, the read that the next block there may join
        owed = 0  # bytes of the streaming region for blocks passed over because their drive is busy
        for block in blocks:
            home = self._homes[block]
            run = runs.get(home.drive)
            if run and not joins(run[0].extent, run[-1].extent, home.extent, limit=self._read_limit):
                self._start(runs.pop(home.drive), actions, now, purpose)
                run = None
            if not run and self._is_busy(block):
                if not self._in_flight.has_room:
                    break
                owed += home.extent.length if home.region == STREAM else 0
                continue
            slot = None
            ahead = home.region == STREAM and purpose is not Purpose.DEMAND
            if home.region not in full and (not ahead or not owed or self._room.leaves(block, owed)):
                slot = self._room.make(block, purpose)
            if slot is not None:
                runs.setdefault(home.drive, []).append(Part(block, home.extent, slot))
            elif purpose is Purpose.DEMAND:
                full.add(home.region)  # later demands may go to a region that has room
            else:
                break  # later blocks are needed later: nothing overtakes
        for run in runs.values():
            self._start(run, actions, now, purpose)

    def _start(self, parts: list[Part], actions: list[Action], now: float, purpose: Purpose) -> None:
        drive = self._homes[parts[0].block].drive
        read = self._in_flight.start(parts, purpose, drive, now)
        self._count(read, drive)
        if purpose is Purpose.GUESS:
            self._expectations.started(read)
        for part in parts:
            self._requests.queue.pop(part.block, None)
            if self._homes[part.block].region in (EXPERTS, RESIDUALS):
                self._refinement.read(part.block, part.extent.length)
        actions.append(read)

    def _count(self, read: Read, drive: int) -> None:
        counters = self._counters
        counters.reads += 1
        counters.drive_bytes[drive] += read.size
        match read.purpose:
            case Purpose.DEMAND:
                counters.demand_bytes += read.size
            case Purpose.CERTAIN:
                counters.prefetch_bytes += read.size
            case Purpose.REFINE:
                counters.refine_bytes += read.size

    # --- streams that wait only for each other ----------------------------------------------------------------------

    def _untangle(self, actions: list[Action], now: float) -> None:
        """If streams wait only for each other, let a demand overtake that fits, else pass a limit, else refuse one."""
        wishes = self._wishes()
        holders = {region: set(self._residency.holders(region)) for region in self._residency.regions}
        if COPY_STREAM in wishes and COPY_STREAM in holders[self._homes[wishes[COPY_STREAM][1]].region]:
            del wishes[COPY_STREAM]  # the blocks that are being copied make room
        if not wishes:
            return
        waits = {stream: self._homes[block].region for stream, (_, block) in wishes.items()}
        tangled = stuck(waits, holders, takes_turns=EXPERTS)
        for stream in waits:
            block = wishes[stream][1]
            slot = self._room.make(block, Purpose.DEMAND) if stream in tangled else None
            if slot is not None:
                self._start([Part(block, self._homes[block].extent, slot)], actions, now, Purpose.DEMAND)
                return
        if tangled:
            holding: Set[Stream] = set().union(*(holders[waits[stream]] for stream in tangled))
            chosen = next(stream for stream in waits if stream in (tangled & holding or tangled))
            number, block = wishes[chosen]
            slot = self._limits.overdraw(block)
            if slot is None:
                self._refuse(number, block, actions)
            else:
                self._start([Part(block, self._homes[block].extent, slot)], actions, now, Purpose.DEMAND)

    def _wishes(self) -> dict[Stream, tuple[int, BlockId]]:
        """For each stream that nothing under way will help: its first ticket that waits for room, and the block."""
        reading = {part.slot.region for part in self._in_flight.parts}
        wishes: dict[Stream, tuple[int, BlockId]] = {}
        moving: set[Stream] = set()  # these get a block once its drive is less busy
        for block, number, stream in self._requests.waiters():
            if self._is_busy(block):
                moving.add(stream)
            elif self._homes[block].region not in reading:
                wishes.setdefault(stream, (number, block))
        return {stream: wish for stream, wish in wishes.items() if stream not in moving}

    def _refuse(self, number: int, block: BlockId, actions: list[Action]) -> None:
        home = self._homes[block]
        region = self._residency.regions[home.region]
        error = UnplaceableModule(
            f"the weights of {block.module!r} ({format_size(home.extent.length)}) do not fit beside "
            f"{format_size(region.capacity - region.space.free_bytes)} that must stay while they are used; "
            f"raise {self._residency.name}_memory"
        )
        self._requests.forget(number)
        actions.append(Refuse(number, error))
