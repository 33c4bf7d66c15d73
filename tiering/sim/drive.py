"""Reads on one modelled drive (pure): which wait for their turn, which are under way, when each one lands."""

from collections.abc import Callable

from ..events import Read
from .agenda import Agenda, Shared
from .devices import Drive
from .noise import Dice


class Reads:
    """As a reader performs them (see kernels/io/reading.py). ``busy`` is told whether any is under way; ``handle``
    of each
    read whose bytes have come: how long that keeps a core busy now, and whether it failed."""

    def __init__(
        self,
        number: int,
        drive: Drive,
        agenda: Agenda,
        dice: Dice,
        handle: Callable[[Read, float, bool], None],
        busy: Callable[[bool], None],
    ) -> None:
        self._number, self._drive, self._agenda = number, drive, agenda
        self._handle, self._tell_busy = handle, busy
        self.dice = dice  # what varies, and what goes wrong
        self._waiting: list[tuple[Read, int]] = []
        self._coming = 0  # bytes under way
        self._computing = False
        self._flow = Shared(agenda, self._rate)
        self._since = self._busy = 0.0

    @property
    def busy_seconds(self) -> float:
        """Time in which a read was under way."""
        return self._busy + (self._agenda.now - self._since if self._coming else 0.0)

    def submit(self, read: Read) -> None:
        """Perform ``read`` when its turn has come."""
        self._waiting.append((read, read.size))
        self._begin()

    def beside(self, computing: bool) -> None:
        """From now on cores compute, or do not."""
        if computing != self._computing:
            self._computing = computing
            if self._drive.contention:
                self._flow.changed()

    def speed_changed(self) -> None:
        """The drive is slower now, or faster again."""
        self._flow.changed()

    def _rate(self, reads: int) -> float:
        return self._drive.rate(reads, computing=self._computing) * self.dice.speed(self._number, self._agenda.now)

    def _begin(self) -> None:
        """Begin those that may, the ones that have waited longest first."""
        still: list[tuple[Read, int]] = []
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

    def _delivered(self, read: Read, size: int) -> None:
        self._coming -= size
        if not self._coming:
            self._busy += self._agenda.now - self._since
            self._tell_busy(False)
        self._begin()
        self._handle(read, self._drive.handling + size / self._drive.checksum, self.dice.fails(read.read))
