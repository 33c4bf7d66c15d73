"""A task beside the reads, on an asyncio loop in a thread of its own; no read passes through it."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine

from ...kernels.waiting import may_wait

Work = Callable[[], Coroutine[None, None, None]]


class Beside:
    """Runs ``work`` until it is done, or ``close``. What it raises is a bug, reported as its thread's own."""

    def __init__(self, work: Work) -> None:
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(work())
        self._thread = threading.Thread(target=self._run, name="penstock-beside", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Cancel it, and wait for its end. Idempotent, from any thread.

        It does not wait in the middle of that work or where ``may_wait`` forbids it: the garbage collector may call it.
        """
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
            self._loop.call_soon_threadsafe(self._task.cancel)
        if threading.current_thread() is not self._thread and may_wait():
            self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._loop), contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
