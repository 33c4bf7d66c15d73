"""A background task on an asyncio loop, in a thread of its own. No read passes through it."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine

from ...kernels.waiting import may_wait

Work = Callable[[], Coroutine[None, None, None]]


class BackgroundTask:
    """Runs ``work`` until it is done or ``close`` is called. An error that it raises is a bug, reported by the
    thread."""

    def __init__(self, work: Work) -> None:
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(work())
        self._thread = threading.Thread(target=self._run, name="penstock-beside", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Cancel the work and wait for its end. Idempotent, from any thread.

        Called from the work itself, or where ``may_wait`` forbids it, it does not wait: the garbage collector may call.
        """
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
            self._loop.call_soon_threadsafe(self._task.cancel)
        if threading.current_thread() is not self._thread and may_wait():
            self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._loop), contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
