"""Holds signals back while Penstock's own code is between two states, and lets them through everywhere else.

Python runs the handler of a signal between any two steps of the main thread. A handler that raises, as that of Ctrl-C
does, leaves what it interrupted half done: a lease that nobody knows of, a planner whose accounts do not add up. So
inside of ``SHIELD`` each handler is asked for only where an error may rise:

- in code of others that Penstock called, such as torch's or the user's, from a function marked ``calls_others``;
- in a function marked ``may_be_interrupted``, which waits;
- where no function of Penstock runs.

Anywhere else the signal is held back, and comes again within a millisecond, at the latest at the end of the shield.
Whether it may pass is read from the frames that the signal interrupted, so computing costs nothing.
"""

# The functions of ``signal`` look up names for numbers, which takes ten times as long.
import _signal  # type: ignore[import-not-found]
import _thread
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeVar

from .forks import begin_anew_in_child

Function = TypeVar("Function", bound=Callable[..., Any])

_OURS = "penstock."
_COMPUTING = tuple(f"penstock.{room}." for room in ("kernels.formats", "kernels.cuda", "kernels.experts", "kernels.kv"))
_COMPUTING += ("penstock.kernels.products.", "penstock.kernels.weights.", "penstock.kernels.calls")
_COMPUTING += ("penstock.runtime.modules.few_rows",)
"""Modules that only compute: as code of others, for an error may rise anywhere in them."""
_RAISING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGUSR1", "SIGUSR2")
_SIGNALS = tuple(int(getattr(signal, name)) for name in _RAISING if hasattr(signal, name))
"""Signals whose handlers are known to raise: those that end a program, and those that end a wait."""
_AGAIN = 0.001  # seconds after which a signal that was held back comes again

_waiting: set[CodeType] = set()
_calling: set[CodeType] = set()


def may_be_interrupted(function: Function) -> Function:
    """Mark ``function``: an error may rise anywhere in it, and in what it calls of Python's own library."""
    _waiting.add(function.__code__)
    return function


def calls_others(function: Function) -> Function:
    """Mark ``function``: where it calls code that is neither Penstock's nor Python's own, an error may rise there."""
    _calling.add(function.__code__)
    return function


def _is_library(module: str) -> bool:
    """Return whether ``module`` is of Python's own library. Named tuples have modules of their own."""
    return module.partition(".")[0] in sys.stdlib_module_names or module.startswith("namedtuple_")


_CALLBACKS = ("weakref", "_weakrefset")
"""Modules of callbacks of weak references: Python prints an error that rises there, and forgets it."""


def may_pass(frame: FrameType | None) -> bool:
    """Return whether an error may rise in ``frame``, the one that a signal has interrupted."""
    if frame is not None and frame.f_globals.get("__name__") in _CALLBACKS:
        return False
    others = False
    while frame is not None:
        module: str = frame.f_globals.get("__name__") or ""
        if module.startswith(_COMPUTING):
            others = True
        elif module.startswith(_OURS):
            return frame.f_code in _waiting or (others and frame.f_code in _calling)
        elif not _is_library(module):
            others = True
        frame = frame.f_back
    return True


class _Held:
    """Stands in the place of a signal's handler."""

    def __init__(self, shield: "Shield", handler: Callable[[int, FrameType | None], Any]) -> None:
        self._shield, self.handler = shield, handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._shield.on and not may_pass(frame):
            self._shield.hold(number)
            return
        self._shield.release(number)
        self.handler(number, frame)


class Shield:
    """A context that may be nested. It does something in the main thread only, which alone runs handlers."""

    def __init__(self) -> None:
        self.on = False
        """Whether signals are held back now."""
        self.main = threading.main_thread().ident
        """The thread that runs handlers."""
        self._depth = 0
        self._held: dict[int, _Held] = {}
        self._waiting: deque[int] = deque()
        self._lock = _thread.allocate_lock()  # over sending a signal again
        self._sending = False
        self._due: set[int] = set()
        """Signals to be sent again. Each is sent once for each time that it was held back: what is sent a second time
        while its handler lets the first pass would come out of a call that the first has ended."""

    def __enter__(self) -> None:
        if _thread.get_ident() != self.main:
            return
        if not self.on:
            self._depth = 0  # also after an error that rose while it was put up or taken down
            self._install()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        if _thread.get_ident() != self.main:
            return
        self._depth -= 1
        if self.on and self._depth <= 0:
            self._remove()

    def hold(self, number: int) -> None:
        """Keep signal ``number`` for later. Called by its handler."""
        if number not in self._waiting:
            self._waiting.append(number)
        self._due.add(number)
        if not self._sending:
            self._sending = True
            _thread.start_new_thread(self._send_again, ())  # takes no lock that the interrupted code may have

    def release(self, number: int) -> None:
        """Forget that signal ``number`` was held back. Called by its handler, which goes on now."""
        if number in self._waiting:
            self._waiting.remove(number)
        self._due.discard(number)

    def _install(self) -> None:
        try:
            for number in _SIGNALS:
                handler = _signal.getsignal(number)
                if isinstance(handler, _Held):
                    self._held[number] = handler
                elif callable(handler):
                    self._held[number] = _Held(self, handler)
                    _signal.signal(number, self._held[number])
        except ValueError:  # another interpreter in this process: it runs no handlers
            pass
        self.on = True

    def _remove(self) -> None:
        try:
            with self._lock:  # from here on nothing is sent again
                self.on = False
            self._due.clear()
            for number, held in self._held.items():
                handler = held.handler
                if _signal.getsignal(number) is held:
                    _signal.signal(number, handler)
            self._held.clear()
        finally:
            self._deliver()

    def _deliver(self) -> None:
        """Send what was held back, all of it, although each may raise."""
        if self._waiting:
            try:
                _thread.interrupt_main(signal.Signals(self._waiting.popleft()))
            finally:
                self._deliver()

    def _send_again(self) -> None:
        while True:
            time.sleep(_AGAIN)
            with self._lock:
                self._sending = False
                if not (self.on and self._waiting):
                    return
                self._sending = True  # after another look: a signal may have come in between
                for number in tuple(self._due):
                    self._due.discard(number)
                    _thread.interrupt_main(signal.Signals(number))

    def begin_anew(self) -> None:
        """Go on in a child process, whose only thread is its main one."""
        self._lock, self._sending = _thread.allocate_lock(), False
        if self.main != _thread.get_ident():  # the parent's main thread, which may be in here, has gone
            self.main = _thread.get_ident()
            if self.on:
                self._waiting.clear()
                self._remove()


SHIELD = Shield()
"""The one of this process."""

begin_anew_in_child(SHIELD.begin_anew)
