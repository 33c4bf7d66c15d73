"""Threads that may wait for reads to land, and delivery of a read's outcome."""

import threading
from collections.abc import Callable

Then = Callable[[Exception | None], None]
"""Callback that takes the outcome of a read or a copy: None, or the error."""


class _ThreadState(threading.local):
    """The state of the calling thread."""

    reader = False
    held_up = 0


_here = _ThreadState()


def deliver(then: Then, problem: Exception | None) -> None:
    """Call ``then`` with ``problem``. An error that it raises is a bug: it is reported, and the reader goes on."""
    try:
        then(problem)
    except BaseException as bug:
        threading.excepthook(threading.ExceptHookArgs((type(bug), bug, bug.__traceback__, threading.current_thread())))


def mark_thread() -> None:
    """Mark the calling thread as one that performs reads or copies. Such a thread never waits for them."""
    _here.reader = True


class _NoWaiting:
    """A context in which the thread must not wait for reads: it submits one, or holds a lock that they need."""

    def __enter__(self) -> None:
        _here.held_up += 1

    def __exit__(self, *_: object) -> None:
        _here.held_up -= 1


no_waiting = _NoWaiting()
"""Enter it before you take such a lock. It can be nested."""


def may_wait() -> bool:
    """Return whether the calling thread may wait for reads to land.

    It may not on a reader's thread, and not inside ``no_waiting``. The garbage collector can run at any point, also in
    these two cases, and it closes unused objects.
    """
    return not (_here.reader or _here.held_up)
