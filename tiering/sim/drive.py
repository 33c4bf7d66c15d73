"""Reads on one modelled drive: waiting, in flight, landed (pure)."""

from collections.abc import Callable

from ..events import Read
from ..kv.events import ReadPages
from .agenda import Agenda, Shared
from .devices import Drive
from .noise import Dice

AnyRead = Read | ReadPages
"""A read of weights, or of KV."""


class Reads:
    """Performs reads as a real reader does (kernels/io/reading.py).

    ``busy`` is called when the first read starts and when the last one ends. ``handle`` is called for each arrived
    read, with the seconds that it keeps a core busy and whether it failed.
    """

    def __init__(
        self,
        number: int,
        drive: Drive,
        agenda: Agenda,
        dice: Dice,
        handle: Callable[[AnyRead, float, bool], None],
        busy: Callable[[bool], None],
    ) -> None:
        self._number, self._drive, self._agenda = number, drive, agenda
        self._handle, self._tell_busy = handle, busy
        self.dice = dice  # variations and faults
        self._waiting: list[tuple[AnyRead, int]] = []
        self._coming = 0  # bytes in flight
        self._computing = False
        self._flow = Shared(agenda, self._rate)
        self._since = self._busy = 0.0

    @property
    def busy_seconds(self) -> float:
        """Seconds in which a read was in flight."""
        return self._busy + (self._agenda.now - self._since if self._coming else 0.0)

    def submit(self, read: AnyRead) -> None:
        """Perform ``read`` when it is its turn."""
        self._waiting.append((read, read.size))
        self._begin()

    def write(self, size: int, then: Callable[[], None]) -> None:
        """Write ``size`` bytes, as fast as the drive reads; ``then`` is called at the end."""
        self._flow.add(size, then)

    def beside(self, computing: bool) -> None:
        """Set whether cores compute from now on."""
        if computing != self._computing:
            self._computing = computing
            if self._drive.contention:
                self._flow.changed()

    def speed_changed(self) -> None:
        """Look at the drive's speed again: it has changed."""
        self._flow.changed()

    def _rate(self, reads: int) -> float:
        return self._drive.rate(reads, computing=self._computing) * self.dice.speed(self._number, self._agenda.now)

    def _begin(self) -> None:
        """Start the reads that may start, the longest waiting first."""
        still: list[tuple[AnyRead, int]] = []
        for read, size in self._waiting:
            if self._coming and self._coming + size > self._drive.enough:
                still.append((read, size))
                continue
            if not self._coming:
                self._since = self._agenda.now
                self._tell_busy(True)
            self._coming += size
            latency = self.dice.varied(self._drive.latency, read.read)
            self._agenda.after(latency, self._flow.add, self.dice.work(read.read, size), self._delivered, read, size)
        self._waiting = still

    def _delivered(self, read: AnyRead, size: int) -> None:
        self._coming -= size
        if not self._coming:
            self._busy += self._agenda.now - self._since
            self._tell_busy(False)
        self._begin()
        self._handle(read, self._drive.handling + size / self._drive.checksum, self.dice.fails(read.read))
