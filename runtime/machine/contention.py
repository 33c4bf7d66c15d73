"""Gives way on a busy machine: while other programs take cores, threads sleep where they would spin, and are fewer.

One for the process, because its threads are one pool. The reason: every parallel region ends with its last thread. On
two cores beside one busy program, threads that spin for it keep the core that it needs, and a token takes ten times as
long.
"""

import asyncio
import threading
from collections.abc import Callable

from ...kernels.calls import limit_teams
from ...kernels.machine.core_use import CoreUse, read_core_use
from ...kernels.machine.wait_policy import wait_passively
from ...kernels.process.forks import begin_anew_in_child
from ...tiering.driving.background import BackgroundTask
from ...tiering.policy.core_contention import PERIOD, CoreContention


class Contention:
    """Watches the cores while any model is loaded. Thread-safe."""

    def __init__(self, read: Callable[[], CoreUse | None] = read_core_use, period: float = PERIOD) -> None:
        """``read`` tells what the system has counted, every ``period`` seconds."""
        self._read, self._period = read, period
        self.begin_anew()

    def begin_anew(self) -> None:
        """A child process has no thread of its parent's, and no model."""
        self._lock = threading.Lock()
        self._holds = 0
        self._task: BackgroundTask | None = None
        self.taken = False
        """Whether other programs take cores now."""

    def hold(self) -> "ContentionHold":
        """Watch until the result is closed."""
        with self._lock:
            self._holds += 1
            self._task = self._task or BackgroundTask(self._watch)
        return ContentionHold(self)

    def leave(self) -> None:
        """One of those that watch no longer needs it."""
        with self._lock:
            self._holds -= 1
            if self._holds or self._task is None:
                return
            task, self._task = self._task, None
        task.close()

    async def _watch(self) -> None:
        decides = CoreContention()
        try:
            while (counts := self._read()) is not None:
                self._give_way(decides.look(counts.now, counts.threads, counts.others))
                await asyncio.sleep(self._period)
        finally:
            self._give_way(False)

    def _give_way(self, taken: bool) -> None:
        if taken == self.taken:
            return
        self.taken = taken
        wait_passively(taken)
        limit_teams(1 if taken else None)


class ContentionHold:
    """One reason to watch the cores: a model that is loaded."""

    def __init__(self, contention: Contention) -> None:
        self._contention: Contention | None = contention

    def close(self) -> None:
        """Need it no longer. Idempotent, from any thread."""
        contention, self._contention = self._contention, None
        if contention is not None:
            contention.leave()


CONTENTION = Contention()
"""That of this process."""

begin_anew_in_child(CONTENTION.begin_anew)
