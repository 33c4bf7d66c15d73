"""Times the single tokens of a loaded model, a few at a time, for what a finished run teaches."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ...tiering.policy.lessons import PerToken, Window

WINDOW = 8
"""Tokens of a window: the counters are read once for so many."""
MOST = 64
"""Windows that are remembered, the newest."""


class Counted(NamedTuple):
    """Running totals of a model: seconds waited for blocks, seconds with reads in flight, bytes read."""

    stalled: float
    read_seconds: float
    bytes_read: int


class RunMeter:
    """The windows of one model. Only tokens that are computed alone count: not prompts, nor several sequences or
    threads at once. Thread-safe."""

    def __init__(
        self, count: Callable[[], Counted], taken: Callable[[], bool], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """``count`` reads the totals, ``taken`` says whether other programs take cores now."""
        self._count, self._taken, self._clock = count, taken, clock
        self._lock = threading.Lock()
        self._inside = 0
        self._begun = self._seconds = 0.0
        self._tokens = 0
        self._beside = self._warm = False
        self._before: Counted | None = None
        self._windows: deque[Window] = deque(maxlen=MOST)

    def begin(self) -> None:
        """A forward of the model begins."""
        with self._lock:
            self._inside += 1
            if self._inside > 1:
                self._before = None
            elif self._before is None:
                self._before, self._tokens, self._seconds, self._beside = self._count(), 0, 0.0, False
            self._begun = self._clock()

    def end(self, tokens: int) -> None:
        """It has ended, with so many tokens; 0 where it failed."""
        with self._lock:
            self._inside -= 1
            if tokens != 1 or self._inside:
                self._before = None
            if self._before is None:
                return
            self._seconds += self._clock() - self._begun
            self._tokens += 1
            self._beside = self._beside or self._taken()
            if self._tokens == WINDOW:
                self._close_window(self._before)

    def windows(self) -> list[Window]:
        """The windows so far, but for the first, whose tokens find a cold cache."""
        with self._lock:
            return list(self._windows)

    def _close_window(self, before: Counted) -> None:
        after, self._before = self._count(), None
        if not self._warm:
            self._warm = True
            return
        counted = (late - early for early, late in zip(before, after, strict=True))
        token = PerToken(*(each / WINDOW for each in (self._seconds, *counted)))
        self._windows.append(Window(token, self._beside))
