"""Which threads may wait for reads to land, and how a read's outcome is handed over."""

import threading
from collections.abc import Callable

Then = Callable[[Exception | None], None]
"""Takes the outcome of a read or a copy: None, or the error."""


class _Here(threading.local):
    """The state of the calling thread."""

    reader = False
    held_up = 0


_here = _Here()


def deliver(then: Then, problem: Exception | None) -> None:
    """Call ``then`` with ``problem``. An error that it raises is a bug: it is reported, and the reader goes on."""
    try:
        then(problem)
    except BaseException as bug:
        threading.excepthook(threading.ExceptHookArgs((type(bug), bug, bug.__traceback__, threading.current_thread())))


def mark_thread() -> None:
    """Mark the calling thread as one that performs reads or copies: it never waits for them."""
    _here.reader = True


class _NoWaiting:
    """A context in which the thread must not wait for reads: it submits one, or holds a lock that they need."""

    def __enter__(self) -> None:
        _here.held_up += 1

    def __exit__(self, *_: object) -> None:
        _here.held_up -= 1


no_waiting = _NoWaiting()
"""Enter it before taking such a lock. It may be nested."""


def may_wait() -> bool:
    """Whether the calling thread may wait for reads to land: not a reader's thread, and not inside ``no_waiting``.

    The garbage collector can run at any point, also inside those, and it closes objects that nobody uses any more.
    """
    return not (_here.reader or _here.held_up)
