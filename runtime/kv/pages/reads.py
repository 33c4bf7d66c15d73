"""Reads of KV pages: performs those that the planner wants; their ends are events."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from ....tiering.kv.events import PagesRead, ReadPages
from ....tiering.kv.pages import Page
from ...tracing.recorder import Recorder
from .counters import PoolCounters
from .spill import Spill


class PageReads:
    """Reads from ``spill`` to what ``view`` gives of a page. ``ended`` is told of ends, under ``lock``, on any
    thread."""

    def __init__(
        self,
        spill: Spill,
        view: Callable[[Page], memoryview],
        lock: AbstractContextManager[object],
        counters: PoolCounters,
        ended: Callable[[PagesRead], None],
    ) -> None:
        self._spill, self._view, self._lock, self._counters, self._ended = spill, view, lock, counters, ended
        self._under_way, self._since = 0, 0.0
        self.recorder: Recorder | None = None
        """Who takes notes, if anybody does."""

    def start(self, read: ReadPages) -> None:
        """Begin ``read``; under the lock."""
        if not self._under_way:
            self._since = time.monotonic()
        self._under_way += 1
        if (recorder := self.recorder) is not None:
            recorder.kv_started(read.read, len(read.pages), read.size)

        def landed(problem: Exception | None) -> None:
            self._land(read, problem)

        try:
            self._spill.read(read.place, [*map(self._view, read.pages)], landed)
        except (OSError, ValueError) as error:  # not even begun
            self._land(read, error)

    def _land(self, read: ReadPages, problem: Exception | None) -> None:
        with self._lock:
            if (recorder := self.recorder) is not None:
                recorder.kv_landed(read.read, problem is not None)
            self._under_way -= 1
            if not self._under_way:
                self._counters.drive_seconds += time.monotonic() - self._since
            self._counters.reads += 1
            if problem is None:
                self._counters.pages_read += len(read.pages)
                self._counters.bytes_read += read.size
            self._ended(PagesRead(read.read, problem))
