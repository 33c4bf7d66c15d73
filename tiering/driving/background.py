"""The one asyncio loop beside running models: it watches their memory and handles their small files.

It runs on a thread of its own while anybody holds it: every loaded model does, and every task beside reads. No block
passes through it, so that reads never wait for a file.
"""

import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from ...kernels.process.forks import begin_anew_in_child
from ...kernels.waiting import may_wait, no_waiting

if TYPE_CHECKING:
    import asyncio  # imported when a loop is made: most commands make none

Work = Callable[[], Coroutine[None, None, None]]
Result = TypeVar("Result")


class _Loop:
    """A loop on a thread of its own, from now on until ``stop``."""

    def __init__(self) -> None:
        import asyncio

        import aiofiles.os  # noqa: F401  for small files: the loop does not wait for an import

        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.loop = runner.get_loop()
        self._stopped = self.loop.create_future()
        self.thread = threading.Thread(target=self._main, args=(runner,), name="penstock-background", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End it soon."""
        self.loop.call_soon_threadsafe(self._stopped.set_result, None)

    def wait(self) -> None:
        """Wait for the end of its thread, unless that is the calling one or ``may_wait`` forbids it."""
        if self.thread is not threading.current_thread() and may_wait():
            self.thread.join()

    def _main(self, runner: "asyncio.Runner") -> None:
        async def until_stopped() -> None:
            await self._stopped

        try:
            with runner:
                runner.run(until_stopped())
        except RuntimeError:  # at the end of the interpreter no thread can be started, not even to end the pool's
            if threading.main_thread().is_alive():
                raise


class _Holders:
    """Counts who holds the loop, which starts with the first and ends with the last. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._count = 0
        self.running: _Loop | None = None

    def enter(self) -> _Loop:
        with no_waiting, self._lock:
            self._count += 1
            self.running = self.running or _Loop()
            return self.running

    def enter_if_running(self) -> _Loop | None:
        with no_waiting, self._lock:
            return self.enter() if self.running is not None else None

    def leave(self, loop: _Loop) -> None:
        """Waits for the end of ``loop`` if nobody else holds it."""
        with no_waiting, self._lock:
            if loop is not self.running:  # that of the parent of this process
                return
            self._count -= 1
            if self._count:
                return
            self.running = None
            loop.stop()
        loop.wait()


_holders = _Holders()


def _begin_anew() -> None:
    """A child process has no thread of its parent's."""
    global _holders
    _holders = _Holders()


begin_anew_in_child(_begin_anew)


class Hold:
    """Keeps the loop running until ``close``."""

    def __init__(self) -> None:
        self.loop = _holders.enter()
        self._lock, self._open = threading.RLock(), True

    def close(self) -> None:
        """Give the loop back. Waits for its end if nobody else holds it, where ``may_wait``. Idempotent."""
        with no_waiting, self._lock:
            was_open, self._open = self._open, False
        if was_open:
            _holders.leave(self.loop)
        elif _holders.running is not self.loop:
            self.loop.wait()


def run(work: Callable[[], Coroutine[Any, Any, Result]], otherwise: Callable[[], Result]) -> Result:
    """The result of ``work`` on the loop, or of ``otherwise`` here: where no loop runs, on the loop's own thread, where
    ``may_wait`` forbids to wait, and at the end of the interpreter, when the loop's pool takes no more work."""
    if not may_wait() or not threading.main_thread().is_alive():
        return otherwise()
    held = _holders.enter_if_running()
    if held is None:
        return otherwise()
    try:
        if threading.current_thread() is held.thread:
            return otherwise()
        import asyncio

        return asyncio.run_coroutine_threadsafe(work(), held.loop).result()
    finally:
        _holders.leave(held)


class BackgroundTask:
    """Runs ``work`` on the loop until it is done, or ``close``. An error in it is a bug, reported as a thread's own."""

    def __init__(self, work: Work) -> None:
        self._hold = Hold()
        self._loop, self._thread = self._hold.loop.loop, self._hold.loop.thread
        self._work = work
        self._task: asyncio.Task[None] | None = None
        self._ended = threading.Event()
        self._loop.call_soon_threadsafe(self._begin)

    def close(self) -> None:
        """Cancel the work, and wait for its end. Idempotent, from any thread.

        It does not wait in the middle of that work or where ``may_wait`` forbids it: the garbage collector may call it.
        """
        with contextlib.suppress(RuntimeError):  # the loop is closed: the work has ended
            self._loop.call_soon_threadsafe(self._cancel)
        if threading.current_thread() is not self._thread and may_wait():
            self._ended.wait()
        self._hold.close()

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._work())
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, task: "asyncio.Task[None]") -> None:
        self._ended.set()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, self._thread)))
