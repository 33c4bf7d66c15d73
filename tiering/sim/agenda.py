"""Simulated time: an agenda of calls, and work that shares a resource (pure)."""

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any


class Agenda:
    """Calls in order of time. Calls due at the same time come in the order in which they were added."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the start."""
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = count()

    def after(self, seconds: float, act: Callable[..., None], *args: Any) -> None:
        """Call ``act(*args)`` ``seconds`` from now."""
        heapq.heappush(self._due, (self.now + seconds, next(self._number), act, args))

    def step(self) -> bool:
        """Advance to the next call and make it; False if there is none."""
        if not self._due:
            return False
        self.now, _, act, args = heapq.heappop(self._due)
        act(*args)
        return True


class _Job:
    __slots__ = ("args", "left", "then")

    def __init__(self, left: float, then: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.left, self.then, self.args = left, then, args


class Shared:
    """Jobs that share a resource equally. ``rate`` maps a number of jobs to their total work per second."""

    def __init__(self, agenda: Agenda, rate: Callable[[int], float]) -> None:
        self._agenda, self._rate = agenda, rate
        self._jobs: list[_Job] = []
        self._since = self._pace = 0.0
        self._plan = 0  # number of the present plan; calls of earlier plans are ignored
        self.busy_seconds = 0.0
        """Seconds in which there was a job."""

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, work: float, then: Callable[..., None], *args: Any) -> None:
        """Start a job of ``work``. ``then(*args)`` is called at its end."""
        self._settle()
        self._jobs.append(_Job(work, then, args))
        self._replan()

    def changed(self) -> None:
        """Look at ``rate`` again: it has changed."""
        if self._jobs:
            self._settle()
            self._replan()

    def _settle(self) -> None:
        """Subtract the work done since the last look."""
        now = self._agenda.now
        if self._jobs:
            self.busy_seconds += now - self._since
            done = (now - self._since) * self._pace
            for job in self._jobs:
                job.left -= done
        self._since = now

    def _replan(self) -> None:
        self._plan += 1
        if not self._jobs:
            return
        self._pace = self._rate(len(self._jobs)) / len(self._jobs)
        first = self._jobs[0] if len(self._jobs) == 1 else min(self._jobs, key=lambda job: job.left)
        self._agenda.after(max(0.0, first.left) / self._pace, self._end, self._plan, first)

    def _end(self, plan: int, job: _Job) -> None:
        if plan != self._plan:
            return
        self._settle()
        self._jobs.remove(job)
        self._replan()
        job.then(*job.args)
