"""The end of the interpreter while threads compute: they come to rest first.

At its end, Python ends each daemon thread where that next asks for the interpreter. Inside of torch's C++ that ends the
whole process with an abort. So before that, threads that use a model stop for ever where no C++ is: they wait for
bytes, or for nothing at all.
"""

import _thread
import atexit
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Protocol, TypeVar

from .forks import begin_anew_in_child

Function = TypeVar("Function", bound=Callable[..., Any])

_PATIENCE = 5.0
"""Seconds that the end waits at most for threads that compute: a long operation of torch cannot be stopped."""
_LOOK = 0.001
_COMPUTING = ("penstock.", "torch.", "transformers.")

_resting: set[CodeType] = set()


def waits(function: Function) -> Function:
    """Mark ``function``: a thread in it is at rest, for it calls ``ENDING.rest`` before it goes on."""
    _resting.add(function.__code__)
    return function


class Halting(Protocol):
    """An object whose users come to rest when the interpreter ends."""

    def halt(self) -> None:
        """Refuse work from now on, and wake nobody who waits."""


class Ending:
    """The threads of this process that have used a model. Thread-safe."""

    def __init__(self) -> None:
        self.on = False
        """Whether the interpreter ends, while there are threads that use a model."""
        self._threads: set[int] = set()
        self._halting: weakref.WeakSet[Halting] = weakref.WeakSet()
        self._registered = False

    def register(self) -> None:
        """Have the end of the interpreter begin here, before anything that was registered until now."""
        if not self._registered:
            self._registered = True
            atexit.register(self._begin)

    def halt_at_end(self, one: Halting) -> None:
        """Have ``one`` halt before threads come to rest."""
        self._halting.add(one)

    def begin_anew(self) -> None:
        """Begin anew in a child process, in which no other thread computes."""
        self._threads.clear()

    def compute_here(self) -> None:
        """The calling thread begins to use a model."""
        self._threads.add(_thread.get_ident())

    def stops_here(self) -> bool:
        """Return whether the interpreter ends, and the calling thread is not the one that ends it."""
        return self.on and threading.current_thread() is not threading.main_thread()

    def rest(self) -> None:
        """Stop the calling thread for ever if it ``stops_here``. It must hold no lock that others need."""
        if self.stops_here():
            _stop_for_ever()

    def _begin(self) -> None:
        computing = (self._threads - {_thread.get_ident()}) & sys._current_frames().keys()
        if not computing:
            return
        self.on = True  # also where none computes just now: it may be about to
        for one in tuple(self._halting):
            one.halt()
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            frames = sys._current_frames()
            if not any(_computes(frames.get(thread)) for thread in computing):
                break
            del frames  # they would keep what the threads compute with
            time.sleep(_LOOK)


@waits
def _stop_for_ever() -> None:
    lock = _thread.allocate_lock()
    lock.acquire()
    lock.acquire()  # without the interpreter, which nobody gives back


def _computes(frame: FrameType | None) -> bool:
    """Return whether the thread with ``frame`` uses a model, and is not at rest."""
    found = False
    while frame is not None:
        if frame.f_code in _resting:
            return False
        found = found or (frame.f_globals.get("__name__") or "").startswith(_COMPUTING)
        frame = frame.f_back
    return found


ENDING = Ending()
"""The one of this process."""

begin_anew_in_child(ENDING.begin_anew)
