"""Takes notes for a trace, from compute threads and bridges, in bounded memory.

``runtime/tracing/chrome.py`` makes a trace of them. All times are ``time.monotonic()``, in seconds.
"""

import threading
import time

from ...tiering.events import Event, Read, ReadDone, ReadFailed
from ...tiering.planner.counters import Counters
from ...tiering.units import BlockId
from .notes import (
    BlockCopied,
    Enter,
    Forward,
    KVLanded,
    KVStall,
    KVStarted,
    Leave,
    Note,
    ReadLanded,
    ReadStarted,
    Sample,
    Stall,
    Tokens,
)

LIMIT = 250_000
"""Notes kept, some 50 MB; a token of a model with 24 layers of experts leaves some 350."""


class Recorder:
    """Takes notes from any thread, at most ``limit``. Later notes are dropped."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.since = time.monotonic()
        self.full = False
        self._limit = limit
        self._notes: list[Note] = []  # appending is atomic: there is no lock

    def forward(self) -> None:
        """The calling thread enters the model's forward."""
        thread = threading.current_thread()
        self._keep(Forward(time.monotonic(), threading.get_ident(), thread.name))

    def enter(self, name: str) -> None:
        """The calling thread enters the module ``name``."""
        self._keep(Enter(time.monotonic(), threading.get_ident(), name))

    def leave(self, name: str) -> None:
        """The calling thread leaves the module ``name``, or FORWARD."""
        self._keep(Leave(time.monotonic(), threading.get_ident(), name))

    def tokens(self, count: int) -> None:
        """The forward that the calling thread is in has ``count`` tokens."""
        self._keep(Tokens(time.monotonic(), threading.get_ident(), count))

    def stall(self, since: float, until: float, block: BlockId | None) -> None:
        """The calling thread waited for ``block``; None if it was refused."""
        self._keep(Stall(until, threading.get_ident(), since, block))

    def started(self, read: Read) -> None:
        """``read`` is handed to the driver."""
        self._keep(ReadStarted(time.monotonic(), read))

    def landed(self, event: Event) -> None:
        """``event``, the end of a read."""
        if isinstance(event, ReadDone | ReadFailed):
            self._keep(ReadLanded(time.monotonic(), event.read, isinstance(event, ReadFailed)))

    def kv_started(self, read: int, pages: int, size: int) -> None:
        """Read number ``read`` of ``pages`` KV pages, ``size`` bytes, is handed to the drive."""
        self._keep(KVStarted(time.monotonic(), read, pages, size))

    def kv_landed(self, read: int, failed: bool) -> None:
        """KV read number ``read`` has ended, or has ``failed``."""
        self._keep(KVLanded(time.monotonic(), read, failed))

    def kv_stall(self, since: float, until: float) -> None:
        """The calling thread waited for KV pages, or for room for them."""
        self._keep(KVStall(until, threading.get_ident(), since))

    def copied(self, since: float, until: float, block: BlockId, size: int, *, failed: bool) -> None:
        """``block`` was copied to the device, or could not be."""
        self._keep(BlockCopied(until, since, block, size, failed))

    def sample(self, counters: Counters) -> None:
        """Note the hits and misses in ``counters``."""
        hits, misses = counters.expert_hits + counters.dense_hits, counters.expert_misses + counters.dense_misses
        self._keep(Sample(time.monotonic(), hits, misses))

    def take(self) -> list[Note]:
        """All notes until now, in order of time, and those of each thread in its own order. They are forgotten here."""
        notes, self._notes = self._notes, []
        return sorted(notes, key=lambda note: note.at)

    def _keep(self, note: Note) -> None:
        if len(self._notes) < self._limit:
            self._notes.append(note)
        else:
            self.full = True
