"""A forked child has copies of its parent's objects, and none of its threads: what each object does then.

Python's ``os.fork`` calls the hooks here, and so do ``multiprocessing`` with its way "fork" and workers of torch's
DataLoader. A spawned process, and a program that ``subprocess`` starts, share nothing.

What was left to the parent raises Forked: the model in runtime/modules/model_forward.py, its handle and its KV pool.
"""

import os
import weakref
from collections.abc import Callable
from typing import Protocol

CAN_FORK = hasattr(os, "register_at_fork")
"""Windows starts every process anew."""

FORKED = (
    "this model was loaded by the process that this one was forked from, whose threads read its weights; load it here, "
    'or start this process with "spawn" or "forkserver"'
)
"""What an error says in a forked child."""


def begin_anew_in_child(call: Callable[[], object]) -> None:
    """Have each child that is forked from now on make ``call``."""
    if CAN_FORK:
        os.register_at_fork(after_in_child=call)


class Inherited(Protocol):
    """An object that threads of this process work for."""

    def leave_to_parent(self) -> None:
        """In a forked child: refuse work from now on, and need no lock or thread of the parent."""


class Reading(Protocol):
    """An object whose threads read into memory of this process."""

    def pause(self) -> None:
        """Begin no read, and wait until those under way have ended."""

    def go_on(self) -> None:
        """End the pause."""


_inherited: "weakref.WeakSet[Inherited]" = weakref.WeakSet()
_reading: "weakref.WeakSet[Reading]" = weakref.WeakSet()


def leave_at_fork(one: Inherited) -> None:
    """Have ``one`` told, in each child that is forked from now on."""
    _inherited.add(one)


def pause_at_fork(one: Reading) -> None:
    """Have ``one`` pause while this process is forked.

    Before Linux 6.3 a direct read that lands in private memory after a fork may land in the child's copy of the page.
    """
    _reading.add(one)


def _before() -> None:
    for one in tuple(_reading):
        one.pause()


def _in_parent() -> None:
    for one in tuple(_reading):
        one.go_on()


def _in_child() -> None:
    inherited = tuple(_inherited)
    _inherited.clear()
    _reading.clear()
    for one in inherited:
        one.leave_to_parent()


if CAN_FORK:
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
