"""Interrupts at chosen lines of Penstock's own code: every line that runs, one after the other, without luck."""

import _thread
import sys
import types
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any


def lines_of(call: Callable[[], object]) -> list[int]:
    """Run ``call``. For each line of Penstock that it runs, the number with which ``interrupt`` gets there first."""
    first: dict[tuple[CodeType, int], int] = {}
    count = 0

    def seen(frame: FrameType) -> None:
        nonlocal count
        count += 1
        first.setdefault((frame.f_code, frame.f_lineno), count)

    _run_traced(call, seen)
    return sorted(first.values())


def interrupt(call: Callable[[], object], number: int, which: int = 2) -> BaseException | None:
    """Run ``call``, and send signal ``which`` to this thread at the line with this ``number``, as if it came from
    outside. What ``call`` raised by that."""
    left = number

    def seen(_: FrameType) -> None:
        nonlocal left
        left -= 1
        if not left:
            _thread.interrupt_main(which)

    try:
        _run_traced(call, seen)
    except (KeyboardInterrupt, SystemExit, TimeoutError) as raised:
        return raised.with_traceback(None)
    return None


def _run_traced(call: Callable[[], object], seen: Callable[[FrameType], None]) -> None:
    """Run ``call``; ``seen`` is told of each line of Penstock."""
    note = _hidden(seen)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not (frame.f_globals.get("__name__") or "").startswith("penstock."):
            return None
        if event == "line":
            note(frame)
        return trace_hidden

    trace_hidden = _hidden(trace)
    sys.settrace(trace_hidden)
    try:
        call()
    finally:
        sys.settrace(None)


def _hidden(function: Any) -> Any:
    """``function``, which looks as if it were of Python's own library: what handles a signal looks at the frames that
    it interrupts, and shall find the traced line there."""
    names = {"__name__": "sys", "_thread": _thread}
    return types.FunctionType(function.__code__, names, function.__name__, None, function.__closure__)
