"""Models that the garbage collector has taken: each is closed by a thread of its own.

The garbage collector runs anywhere: also in a thread that has a lock of a library, which whoever would be waited for
may need (that of ``concurrent.futures``, say, which every pool takes to start a thread).
"""

import _thread
import threading
from collections import deque
from collections.abc import Callable

from ...kernels.process.forks import begin_anew_in_child


class Abandoned:
    """The closings of models that nobody holds any more. Thread-safe, without a lock."""

    def __init__(self) -> None:
        self._closing: deque[_thread.LockType] = deque()  # each is free when its closing has ended

    def close(self, work: Callable[[], None]) -> None:
        """Have a thread do ``work``. It waits for nothing, not even for the start of that thread."""
        busy = _thread.allocate_lock()
        busy.acquire()
        self._closing.append(busy)

        def run() -> None:
            try:
                work()
            finally:
                # Whoever asked for the current thread made one up, which would stay for ever; Python 3.13 sees to that.
                threading._active.pop(_thread.get_ident(), None)  # type: ignore[attr-defined]
                self._closing.remove(busy)
                busy.release()

        _thread.start_new_thread(run, ())

    def wait(self) -> None:
        """Wait until the memory of all that were abandoned before is given back."""
        for busy in tuple(self._closing):
            with busy:
                pass

    def begin_anew(self) -> None:
        """A child process has no thread of its parent's."""
        self._closing.clear()


ABANDONED = Abandoned()
"""Those of this process."""

begin_anew_in_child(ABANDONED.begin_anew)
