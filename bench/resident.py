"""The resident set of this process, watched while it works."""

import threading
import time
import weakref

import psutil

_EVERY = 0.005


class ResidentSet:
    """Bytes above those at the start of the watch, sampled every 5 ms: ``now``, and the highest so far, ``peak``."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._base = self._process.memory_info().rss
        self.peak = 0
        threading.Thread(target=_watch, args=(weakref.ref(self),), daemon=True).start()

    @property
    def now(self) -> int:
        """The bytes of this moment."""
        return self._process.memory_info().rss - self._base

    def take_peak(self) -> int:
        """The peak since the last call."""
        peak, self.peak = self.peak, 0
        return peak


def _watch(watched: "weakref.ref[ResidentSet]") -> None:
    """Sample the peak as long as somebody needs it."""
    while (one := watched()) is not None:
        one.peak = max(one.peak, one.now)
        del one
        time.sleep(_EVERY)
