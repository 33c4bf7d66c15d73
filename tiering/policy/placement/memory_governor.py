"""Decides how much memory to use: less at once when the machine runs short, more slowly (pure).

Below the low mark, other programs need memory. The limit then sinks by the bytes missing to get well above the mark,
and by the bytes that others took since the last look, since they may go on. The more was given already, the more of
that counts. Between the marks nothing changes. Above the high mark the limit rises in steps of half of the surplus, so
growth alone never reaches the low mark.

A program that takes and gives memory again and again must not make the limit swing. So the surplus is the least over a
period, and that period doubles each time the limit must sink soon after it rose.
"""

import math

from ...units import GiB, MiB

PATIENCE = 2.0
"""Seconds of surplus before the limit rises, at first."""
MOST_PATIENCE = 64.0
"""Seconds of surplus before the limit rises, at most."""
PACE = 0.5
"""Seconds between two rises while the surplus lasts."""
_STEPS = 64
"""A rise is at least this fraction of the way from floor to ceiling."""


def low_mark(total: int) -> int:
    """Memory is short below this many available bytes of ``total``. The high mark is twice as high."""
    return min(max(total // 48, 16 * MiB), GiB)


class Governor:
    """The limit in bytes, between ``floor`` and ``ceiling``. It has no clock: callers pass the time."""

    def __init__(self, floor: int, ceiling: int) -> None:
        assert floor <= ceiling
        self.floor, self.ceiling, self.limit = floor, ceiling, ceiling
        self.shrinks = self.growths = 0
        self._before: tuple[int, int] | None = None  # available and held at the last look
        self._given = 0  # bytes, by the last look
        self._patience = PATIENCE
        self._grown = self._shrunk = -math.inf  # time of the last rise and of the last fall
        self._since = -math.inf  # begin of the present period of surplus
        self._least: list[int] = []  # least surplus in bytes, of the previous period and of this one

    def advise(self, now: float, available: int, total: int, unused: int) -> int:
        """The limit from ``now`` (monotonic seconds) on.

        ``available`` bytes of ``total`` are free on this machine. ``unused`` bytes are allowed by the present limit and
        not taken yet. A negative number is taken and about to be given back.
        """
        low = low_mark(total)
        taken = min(self._taken(available, self.limit - unused), max(low, 2 * self._given))
        self._given = 0
        coming = available - min(unused, 0)  # after our own surplus is given back
        surplus = available - max(unused, 0) - 2 * low
        if now - max(self._grown, self._shrunk) > 4 * MOST_PATIENCE:
            self._patience = PATIENCE
        if coming < low or (coming < 2 * low and coming - taken < low):
            self._least.clear()
            self._shrink(now, max(unused, 0) + low + low // 2 + taken - coming)
        elif surplus <= 0:
            self._least.clear()
        else:
            self._plenty(now, surplus)
        return self.limit

    def _taken(self, available: int, held: int) -> int:
        """Bytes that other programs took since the last look."""
        before, self._before = self._before, (available, held)
        return 0 if before is None else max(0, before[0] - available - (held - before[1]))

    def _shrink(self, now: float, missing: int) -> None:
        if self.limit == self.floor:
            return
        if now - self._grown < 2 * self._patience + PATIENCE:
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        self._shrunk = now
        self.shrinks += 1
        before, self.limit = self.limit, max(self.floor, self.limit - missing)
        self._given = before - self.limit

    def _plenty(self, now: float, surplus: int) -> None:
        if not self._least:
            self._since = now
            self._least = [surplus]
        elif now - self._since >= self._patience:
            self._since = now
            self._least = [self._least[-1], surplus]
        self._least[-1] = min(self._least[-1], surplus)
        if len(self._least) > 1 and now - self._grown >= PACE:
            self._grow(now, min(self._least) // 2)

    def _grow(self, now: float, more: int) -> None:
        more = min(more, self.ceiling - self.limit)
        least_step = max(1, (self.ceiling - self.floor) // _STEPS)
        if more < min(least_step, self.ceiling - self.limit) or not more:
            return
        self._grown = now
        self.growths += 1
        self.limit += more
        self._least = [surplus - more for surplus in self._least]
