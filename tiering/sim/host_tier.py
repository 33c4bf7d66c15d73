"""The host tier below a device tier, and the bus between them, simulated (pure).

Follows runtime/tiers/device/uplink.py."""

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

from ..errors import ReadError
from ..events import PINNING_STREAM, Acquire, Begin, Event, Expect, Grant, Read, ReadDone, ReadFailed, Refuse
from ..planner.planner import Planner
from ..planner.regions import PINNED
from ..planner.relay import Copy, Landed, Relay, expected, order_of
from .agenda import Agenda
from .devices import Bus


class Below(NamedTuple):
    """A new planner of the host tier, and the bus from there to the device."""

    planner: Planner
    bus: Bus


class Lower:
    """The host tier: it serves the reads of the device tier.

    ``read`` starts a read on a drive. ``landed`` is called at the end of each read of the device tier.
    """

    def __init__(
        self, below: Below, agenda: Agenda, read: Callable[[Read], None], landed: Callable[[Event], None]
    ) -> None:
        self.planner, self._bus = below
        self._agenda, self._read_flash, self._tell = agenda, read, landed
        self._relay = Relay(order_of(self.planner.homes))
        self._tickets = count(1)
        self._reads: dict[int, int] = {}  # by ticket, the number of the device tier's read
        self._queue: deque[Copy] = deque()
        self.bytes_copied, self.busy_seconds = 0, 0.0

    def load(self) -> None:
        """Load the blocks that stay in host memory."""
        pinned = tuple(block for block, home in self.planner.homes.items() if home.region == PINNED)
        self.post(Acquire(next(self._tickets), PINNING_STREAM, pinned))

    def read(self, read: Read) -> None:
        """Start ``read`` of the device tier."""
        if (
            read.parts[0].block not in self.planner.homes
        ):  # it stays on the device, and is loaded before the time begins
            self._agenda.after(0.0, self._tell, ReadDone(read.read))
            return
        ticket = next(self._tickets)
        self._reads[ticket] = read.read
        for event in self._relay.start(ticket, read.parts):
            self.post(event)

    def told(self, event: Event, above: Planner) -> Event:
        """Take this tier's part of a stream's ``event``; returns the event for the device tier."""
        if isinstance(event, Begin):
            for begin in self._relay.begin():
                self.post(begin)
        elif isinstance(event, Expect):
            below, event = expected(event, above.residency.absent, self.planner.residency.absent)
            self.post(below)
        return event

    def post(self, event: Event) -> None:
        """Hand ``event`` to the planner, and perform its actions."""
        for action in self.planner.handle(event, self._agenda.now):
            match action:
                case Read():
                    self._read_flash(action)
                case Grant() if action.ticket in self._reads:
                    self._queue.append(self._relay.granted(action))
                    if len(self._queue) == 1:
                        self._copy()
                case Refuse() if action.ticket in self._reads:
                    self._land(self._relay.refused(action))

    def _copy(self) -> None:
        size = self._queue[0].part.extent.length
        seconds = self._bus.latency + size / self._bus.bandwidth
        self.bytes_copied += size
        self.busy_seconds += seconds
        self._agenda.after(seconds, self._copied)

    def _copied(self) -> None:
        release, ends = self._relay.copied(self._queue.popleft(), None)
        if self._queue:
            self._copy()
        self.post(release)
        self._land(ends)

    def _land(self, ends: list[Landed]) -> None:
        for end in ends:
            read = self._reads.pop(end.ticket)
            failed = end.error is not None
            event = ReadFailed(read, ReadError("simulated")) if failed else ReadDone(read)
            self._agenda.after(0.0, self._tell, event)
