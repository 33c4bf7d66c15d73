"""Write-back of KV pages: a thread that performs the writes that the planner wants, one at a time."""

import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from ....tiering.errors import PenstockError
from ....tiering.kv.events import PagesWritten, WritePages
from ....tiering.kv.pages import Page
from .counters import PoolCounters
from .spill import Spill


class WriteBack:
    """Writes to ``spill`` what ``view`` gives of a page. ``ended`` is told of ends, under ``lock``, on a thread of
    its own."""

    def __init__(
        self,
        spill: Spill,
        view: Callable[[Page], memoryview],
        lock: AbstractContextManager[object],
        counters: PoolCounters,
        ended: Callable[[PagesWritten], None],
    ) -> None:
        self._spill, self._view, self._lock, self._counters, self._ended = spill, view, lock, counters, ended
        self._queue: queue.SimpleQueue[tuple[WritePages, list[memoryview]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="penstock-kv-writer", daemon=True)
        self._thread.start()

    def start(self, write: WritePages) -> None:
        """Begin ``write``; under the lock."""
        self._queue.put((write, [*map(self._view, write.pages)]))

    def close(self) -> None:
        """End the thread, which has nothing to do any more."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (wanted := self._queue.get()) is not None:
            write, views = wanted
            problem: PenstockError | None = None
            try:
                self._spill.reserve(write.length)
                self._spill.write(write.place, views)
            except PenstockError as error:
                problem = error
            del views, wanted  # nothing keeps the memory from being given back
            with self._lock:
                if problem is None:
                    self._counters.pages_written += len(write.pages)
                    self._counters.bytes_written += write.size
                self._ended(PagesWritten(write.write, problem))
