"""Turns notes into a trace in Chrome's Trace Event Format (pure), which Perfetto and chrome://tracing show.

It has four groups of rows. "compute" has one row per thread, on which the model's forward, its layers and stalls are
nested. "flash" has one row per read in flight, and the counters. "KV" has the same for reads of KV pages. "device" has
the copies to a device, one after the other. tracefile.py
writes the file.
"""

import heapq
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...tiering.events import Purpose
from ...tiering.units import BlockId
from .notes import (
    FORWARD,
    BlockCopied,
    Enter,
    Forward,
    KVLanded,
    KVStall,
    KVStarted,
    Leave,
    Note,
    ReadLanded,
    ReadStarted,
    Sample,
    Stall,
    Tokens,
)

COMPUTE, FLASH, KV, DEVICE = 1, 2, 3, 4
"""Numbers of the groups of rows, which the format calls processes."""

KINDS = tuple(purpose.value for purpose in Purpose)

_Event = dict[str, Any]


def document(notes: Iterable[Note], *, since: float, until: float, files: Sequence[str], full: bool) -> Iterator[str]:
    """The JSON text of the trace from ``since`` to ``until``, piece by piece.

    ``notes`` are in order of time. ``files`` are the names of the data files by number. ``full``: the recorder could
    not take more notes.
    """
    other = {"producer": "penstock"}
    if full:
        other["note"] = "the recorder was full before the end: what came later is missing"
    yield f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(other)}, "traceEvents": [\n'
    separator = ""
    for event in events(notes, since=since, until=until, files=files, full=full):
        yield separator + json.dumps(event, separators=(",", ":"))
        separator = ",\n"
    yield "\n]}\n"


def events(notes: Iterable[Note], *, since: float, until: float, files: Sequence[str], full: bool) -> Iterator[_Event]:
    """The events of the trace; arguments as for ``document``. Times are in microseconds after ``since``."""
    yield from _group(COMPUTE, "compute")
    yield from _group(FLASH, "flash")
    clock = _Clock(since)
    compute, flash, kv, copies = _Compute(clock), _Flash(clock, files), _KVReads(clock), _Copies(clock)
    last = since
    for note in notes:
        last = note.at
        if isinstance(note, ReadStarted | ReadLanded | Sample):
            yield from flash.take(note)
        elif isinstance(note, KVStarted | KVLanded):
            yield from kv.take(note)
        elif isinstance(note, BlockCopied):
            yield from copies.take(note)
        else:
            yield from compute.take(note)
    end = last if full else max(last, until)
    yield from compute.finish(end)
    yield from flash.finish(end)
    yield from kv.finish(end)
    if full:
        at = clock.microseconds(end)
        yield {"ph": "i", "s": "g", "name": "the recorder was full", "pid": COMPUTE, "tid": 0, "ts": at}


def label(block: BlockId) -> str:
    """The name of ``block`` in a trace."""
    name = block.module or "small weights"
    return f"{name} {block.part}" if block.kind == "expert" else name


def labels(blocks: Sequence[BlockId]) -> str:
    """The name of several blocks in a trace: parts of the same module are listed together."""
    parts: dict[tuple[str, str], list[int]] = {}
    for block in blocks:
        parts.setdefault((block.kind, block.module or "small weights"), []).append(block.part)
    return "; ".join(
        f"{module} {', '.join(map(str, numbers))}" if kind == "expert" else module
        for (kind, module), numbers in parts.items()
    )


class _Clock:
    """Whole nanoseconds after ``since``: spans that nest in seconds still nest when they are rounded."""

    def __init__(self, since: float) -> None:
        self._since = since

    def nanoseconds(self, at: float) -> int:
        return max(0, round((at - self._since) * 1e9))

    def microseconds(self, at: float) -> float:
        return self.nanoseconds(at) / 1000

    def span(self, begin: float, end: float) -> dict[str, float]:
        start = self.nanoseconds(begin)
        return {"ts": start / 1000, "dur": max(0, self.nanoseconds(end) - start) / 1000}


# --- compute --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Span:
    name: str
    kind: str
    begin: float
    depth: int
    end: float = 0.0
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Thread:
    row: int
    called: str = ""
    open: list[_Span] = field(default_factory=list)
    done: list[_Span] = field(default_factory=list)


class _Compute:
    """Pairs the modules that each thread entered and left. An interrupted thread leaves without a note: its next
    forward, or the module around it, ends the spans that are still open."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock
        self._threads: dict[int, _Thread] = {}

    def take(self, note: Forward | Enter | Leave | Tokens | Stall | KVStall) -> Iterator[_Event]:
        thread = self._threads.setdefault(note.thread, _Thread(len(self._threads) + 1))
        called = note.called if isinstance(note, Forward) else thread.called or f"thread {thread.row}"
        if called != thread.called:
            thread.called = called
            yield from _row(COMPUTE, thread.row, called)
        match note:
            case Forward():
                yield from self._close(thread, 0, note.at)
                thread.open.append(_Span(FORWARD, "forward", note.at, 0))
            case Enter():
                thread.open.append(_Span(note.name, "layer", note.at, len(thread.open)))
            case Leave():
                depth = max((n for n, span in enumerate(thread.open) if span.name == note.name), default=None)
                if depth is not None:  # else it was entered before the trace began
                    yield from self._close(thread, depth, note.at)
            case Tokens():
                if thread.open:
                    thread.open[0].args["tokens"] = note.given
            case Stall():
                name = "stall" if note.block is None else f"stall: {label(note.block)}"
                yield from self._stalled(thread, _Span(name, "stall", note.since, len(thread.open), note.at))
            case KVStall():
                yield from self._stalled(thread, _Span("stall: KV", "KV stall", note.since, len(thread.open), note.at))

    def finish(self, until: float) -> Iterator[_Event]:
        for thread in self._threads.values():
            yield from self._close(thread, 0, until)

    def _stalled(self, thread: _Thread, span: _Span) -> Iterator[_Event]:
        thread.done.append(span)
        if not thread.open:
            yield from self._flush(thread)

    def _close(self, thread: _Thread, depth: int, at: float) -> Iterator[_Event]:
        for span in thread.open[depth:]:
            span.end = at
            thread.done.append(span)
        del thread.open[depth:]
        if not thread.open:
            yield from self._flush(thread)

    def _flush(self, thread: _Thread) -> Iterator[_Event]:
        for span in sorted(thread.done, key=lambda span: (span.begin, span.depth)):  # viewers want the outer one first
            event = {"ph": "X", "name": span.name, "cat": span.kind, "pid": COMPUTE, "tid": thread.row}
            yield event | self._clock.span(span.begin, span.end) | {"args": span.args}
        thread.done.clear()


# --- flash ----------------------------------------------------------------------------------------------------------


class _Rows:
    """The rows of a ``group`` of reads: each read gets the lowest free row."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._free: list[int] = []
        self._rows = 0

    def take(self) -> Generator[_Event, None, int]:
        """A read begins. Yields the name of its row, if that is new, and returns its number."""
        if not self._free:
            self._rows += 1
            self._free.append(self._rows)
            yield from _row(self._group, self._rows, f"read {self._rows}")
        return heapq.heappop(self._free)

    def give_back(self, row: int) -> None:
        """The read on ``row`` has ended."""
        heapq.heappush(self._free, row)


class _Flash:
    """Puts reads of weights on rows, and counts bytes in flight and hits."""

    def __init__(self, clock: _Clock, files: Sequence[str]) -> None:
        self._clock, self._files = clock, files
        self._reads: dict[int, tuple[ReadStarted, int]] = {}
        self._rows = _Rows(FLASH)
        self._bytes = dict.fromkeys(KINDS, 0)
        self._counted: Sample | None = None

    def take(self, note: ReadStarted | ReadLanded | Sample) -> Iterator[_Event]:
        match note:
            case ReadStarted():
                row = yield from self._rows.take()
                self._reads[note.read.read] = note, row
                self._bytes[note.read.purpose.value] += note.read.size
                yield self._counter("bytes in flight", note.at, self._bytes)
            case ReadLanded():
                started, row = self._reads.pop(note.read, (None, 0))
                if started is None:
                    return  # it was started before the trace began
                self._rows.give_back(row)
                self._bytes[started.read.purpose.value] -= started.read.size
                yield self._span(started, row, note.at, {"failed": True} if note.failed else {})
                yield self._counter("bytes in flight", note.at, self._bytes)
            case Sample():
                if self._counted is not None:
                    asked = {
                        "in memory": note.hits - self._counted.hits,
                        "read or on the way": note.misses - self._counted.misses,
                    }
                    yield self._counter("blocks asked for, by layer", note.at, asked)
                self._counted = note

    def finish(self, until: float) -> Iterator[_Event]:
        for started, row in self._reads.values():
            yield self._span(started, row, until, {"unfinished": True})

    def _span(self, started: ReadStarted, row: int, until: float, more: dict[str, Any]) -> _Event:
        read, seconds = started.read, until - started.at
        extent = read.parts[0].extent
        where = {"file": self._files[extent.file], "offset": extent.offset}
        args = {"kind": read.purpose.value, "bytes": read.size} | where | ({} if more else _speed(read.size, seconds))
        event = {"ph": "X", "name": labels([part.block for part in read.parts]), "cat": "read", "pid": FLASH}
        return event | {"tid": row} | self._clock.span(started.at, until) | {"args": args | more}

    def _counter(self, name: str, at: float, values: dict[str, int]) -> _Event:
        return {
            "ph": "C",
            "name": name,
            "pid": FLASH,
            "tid": 0,
            "ts": self._clock.microseconds(at),
            "args": dict(values),
        }


# --- KV -------------------------------------------------------------------------------------------------------------


class _KVReads:
    """Puts reads of KV pages on rows of their own."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock
        self._reads: dict[int, tuple[KVStarted, int]] = {}
        self._rows = _Rows(KV)
        self._named = False

    def take(self, note: KVStarted | KVLanded) -> Iterator[_Event]:
        match note:
            case KVStarted():
                if not self._named:
                    self._named = True
                    yield from _group(KV, "KV")
                row = yield from self._rows.take()
                self._reads[note.read] = note, row
            case KVLanded():
                started, row = self._reads.pop(note.read, (None, 0))
                if started is not None:  # else it was started before the trace began
                    self._rows.give_back(row)
                    yield self._span(started, row, note.at, {"failed": True} if note.failed else {})

    def finish(self, until: float) -> Iterator[_Event]:
        for started, row in self._reads.values():
            yield self._span(started, row, until, {"unfinished": True})

    def _span(self, started: KVStarted, row: int, until: float, more: dict[str, Any]) -> _Event:
        args: dict[str, Any] = {"bytes": started.size, "pages": started.pages}
        args |= more or _speed(started.size, until - started.at)
        event = {"ph": "X", "name": f"{started.pages} KV pages", "cat": "KV read", "pid": KV, "tid": row}
        return event | self._clock.span(started.at, until) | {"args": args}


def _speed(size: int, seconds: float) -> dict[str, float]:
    return {"MB/s": round(size / 1e6 / seconds, 1)} if seconds > 0 else {}


# --- copies ---------------------------------------------------------------------------------------------------------


class _Copies:
    """Puts copies to a device on a row."""

    def __init__(self, clock: _Clock) -> None:
        self._clock, self._named = clock, False

    def take(self, note: BlockCopied) -> Iterator[_Event]:
        if not self._named:
            self._named = True
            yield from _group(DEVICE, "device")
            yield from _row(DEVICE, 1, "copies")
        args: dict[str, Any] = {"bytes": note.size}
        args |= {"failed": True} if note.failed else _speed(note.size, note.at - note.since)
        event = {"ph": "X", "name": label(note.block), "cat": "copy", "pid": DEVICE, "tid": 1}
        yield event | self._clock.span(note.since, note.at) | {"args": args}


# --- names of rows --------------------------------------------------------------------------------------------------


def _group(group: int, name: str) -> Iterator[_Event]:
    yield {"ph": "M", "name": "process_name", "pid": group, "tid": 0, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": group, "tid": 0, "args": {"sort_index": group}}


def _row(group: int, row: int, name: str) -> Iterator[_Event]:
    yield {"ph": "M", "name": "thread_name", "pid": group, "tid": row, "args": {"name": name}}
    yield {"ph": "M", "name": "thread_sort_index", "pid": group, "tid": row, "args": {"sort_index": row}}
