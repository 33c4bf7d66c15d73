"""Decides whether guessing the next experts pays, by measured seconds saved and lost (pure).

A right guess saves a read during which a stream would have waited. A wrong guess costs the drive's time, as far as a
demand waited for the drive. Every guess costs the time to make it. When the costs are higher, guessing stops. It is
tried again for a few forwards, at growing intervals.
"""

TRIAL = 8
"""Forwards for which guessing is tried."""
_PAUSE, _LONGEST_PAUSE = 16, 512  # forwards
_KEEP = 0.9  # weight of earlier measurements, per forward


class Speculation:
    """Counts seconds, the older ones less. ``active`` says whether to guess now."""

    def __init__(self, *, allowed: bool = True) -> None:
        self._allowed = self.active = allowed
        self._saved = self._cost = 0.0
        self._seconds = self._bytes = 0.0
        self._crowded = self._reads = 0.0
        self._left = TRIAL  # forwards until the next decision
        self._pause = _PAUSE

    # --- what was measured ------------------------------------------------------------------------------------------

    def drive(self, size: int, seconds: float) -> None:
        """The drive took ``seconds`` for ``size`` bytes."""
        self._bytes += size
        self._seconds += seconds

    def landed(self, *, crowded: bool) -> None:
        """A guessed read is done. ``crowded`` says whether a demand waited for the drive meanwhile."""
        self._reads += 1
        self._crowded += crowded

    def made(self, seconds: float) -> None:
        """A guess was made, in ``seconds`` of a stream's time."""
        self._cost += seconds

    def came_true(self, size: int) -> None:
        """``size`` bytes were read on a guess, and then asked for."""
        self._saved += size * self.pace

    def failed(self, size: int) -> None:
        """``size`` bytes were read on a guess, and not asked for."""
        self._cost += size * self.pace * self.price

    @property
    def price(self) -> float:
        """Cost of a read in vain, as a share of its time."""
        return max(0.25, self._crowded / self._reads if self._reads else 1.0)

    @property
    def pace(self) -> float:
        """Seconds of the drive per byte."""
        return self._seconds / self._bytes if self._bytes else 0.0

    # --- the verdict ------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """A forward begins."""
        self._left -= 1
        if self.active and self._left <= 0:
            if self._cost > self._saved:
                self.active, self._left = False, self._pause
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            else:
                self._left, self._pause = 1, _PAUSE
        elif self._left <= 0 and self._allowed:
            self.active, self._left = True, TRIAL
            self._saved = self._cost = 0.0
        for name in ("_saved", "_cost", "_seconds", "_bytes", "_crowded", "_reads"):
            setattr(self, name, getattr(self, name) * _KEEP)
