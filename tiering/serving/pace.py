"""How fast a queue moves (pure), for those who have to come again."""

_WEIGHT = 1 / 8
"""Of the latest interval in the mean."""
LEAST, MOST = 1.0, 600.0
"""Seconds after which somebody may be told to come again."""


class Pace:
    """When requests leave a queue while others wait."""

    def __init__(self) -> None:
        self._mean: float | None = None
        self._last: float | None = None  # None: nobody waited since
        self._refused = 0

    def leave(self, now: float, *, others: bool) -> None:
        """A request has left the queue. ``others`` wait yet."""
        if self._last is not None:
            interval = now - self._last
            self._mean = interval if self._mean is None else self._mean + _WEIGHT * (interval - self._mean)
        self._last = now if others else None
        self._refused = max(0, self._refused - 1)

    def refuse(self, now: float) -> float:
        """A request found the queue full. Returns in how many seconds there will be a place for it, behind those that
        were told so before."""
        self._refused += 1
        waited = 0.0 if self._last is None else now - self._last
        return min(MOST, max(LEAST, max(waited, self._mean or 0.0) * self._refused))
