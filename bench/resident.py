"""The resident set of this process, watched while it works."""

import threading
import time

import psutil

_EVERY = 0.005


class ResidentSet:
    """In bytes over what it was when the watch began, sampled every 5 ms: ``now`` and the highest so far, ``peak``."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._base = self._process.memory_info().rss
        self.peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def now(self) -> int:
        return self._process.memory_info().rss - self._base

    def take_peak(self) -> int:
        """The peak since this was called last."""
        peak, self.peak = self.peak, 0
        return peak

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self.now)
            time.sleep(_EVERY)
