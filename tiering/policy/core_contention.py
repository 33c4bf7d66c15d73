"""Decides whether other programs take cores from the threads that compute (pure).

A core is taken where two things come together: threads that want to run all the time wait for a core, and others than
this process run. Own threads that wait for each other are no reason, nor are others on cores that nobody else wants.
"""

from collections.abc import Mapping

PERIOD = 0.25
"""Seconds between two looks."""
PATIENCE = 2.0
"""Seconds without contention before it counts as over: programs that take a core in bursts shall not make it swing."""
_WANTING = 0.3
"""A thread that wanted to run for this share of the time is one that computes."""
_TAKEN, _FREE = 0.12, 0.04
"""Shares of the time that threads waited: above, cores are taken; below, they are free."""
_OTHERS = 0.25
"""Cores that others used, at least, where cores are taken."""


Uses = Mapping[int, tuple[float, float]]
"""Seconds that each thread of this process, by number, has run, and waited for a core."""


class CoreContention:
    """Whether others take cores. It has no clock: callers pass what the system has counted."""

    def __init__(self) -> None:
        self.taken = False
        self._last: tuple[float, Uses, float] | None = None
        self._since = 0.0  # the last time that it was so

    def look(self, now: float, threads: Uses, others: float) -> bool:
        """Whether cores are taken at monotonic time ``now`` in seconds, by the uses of ``threads`` until then, the
        seconds that cores ran for ``others``, and those at the last look."""
        last, self._last = self._last, (now, threads, others)
        if last is None or now <= last[0]:
            return self.taken
        seconds = now - last[0]
        waited = share_waited(last[1], threads, seconds)
        least = _FREE if self.taken else _TAKEN
        contended = self.taken if waited is None else waited >= least  # while nothing computes, it is as it was
        if contended and (others - last[2]) / seconds >= _OTHERS:
            self.taken, self._since = True, now
        elif now - self._since >= PATIENCE:
            self.taken = False
        return self.taken


def share_waited(before: Uses, after: Uses, seconds: float) -> float | None:
    """Return the share of their time that threads that compute waited for a core. None if none computed for these
    ``seconds``."""
    ran = waited = 0.0
    for number, (run, stood) in after.items():
        first = before.get(number)
        if first is not None and run - first[0] + stood - first[1] >= _WANTING * seconds:
            ran += run - first[0]
            waited += stood - first[1]
    return waited / (ran + waited) if ran + waited else None
