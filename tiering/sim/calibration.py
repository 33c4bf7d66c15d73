"""Costs of computing, from recordings of real runs: numbers for modelled memory and layers (pure)."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..events import Acquire, Begin, End, Expect, Grant, Read, ReadDone, Release
from .devices import Drive, Memory, line
from .recording import Recording
from .rerun import passes_of
from .workload import Layer, TokenRouting, layers_of

OFTEN = 5
"""A size counts when it was seen this often."""
_NOTHING = 1.0
"""Bytes per second below this are a rounding error."""


class Taken(NamedTuple):
    """Seconds that computing with ``size`` bytes of weights took."""

    size: int
    seconds: float


def expert_seconds(recording: Recording) -> list[Taken]:
    """The time of each computation of experts for one token, from when they and their thread were ready."""
    found: list[Taken] = []
    here: dict[object, float] = {}
    idle: dict[int, float] = {}
    passes = 0
    owner: dict[int, int] = {}  # stream by ticket
    for now, event, actions in recording.steps:
        passes += isinstance(event, Begin)
        if isinstance(event, Acquire):
            owner[event.ticket] = event.stream
        if isinstance(event, Release) and event.blocks[0].kind == "expert" and passes > 1:  # the first is the prompt
            started = max(idle[event.stream], *(here[event.stream, block] for block in event.blocks))
            size = sum(recording.setup.homes[block].extent.length for block in event.blocks)
            found.append(Taken(size, now - started))
        if isinstance(event, Acquire | Release | Expect):
            idle[event.stream] = now
        here |= {(owner[a.ticket], a.block): now for a in actions if isinstance(a, Grant)}
    return found


def dense_seconds(recording: Recording) -> list[float]:
    """Computing seconds of each pass of a model without experts: all but its waiting time."""
    found: list[float] = []
    computed: dict[int, float] = {}  # by stream: seconds so far, less its start
    owner: dict[int, int] = {}  # stream by ticket
    latest: dict[int, float] = {}  # by ticket: time of the request, or of its last block
    for now, event, actions in recording.steps:
        if isinstance(event, Begin):
            computed[event.stream] = -now
        if isinstance(event, Acquire):
            owner[event.ticket], latest[event.ticket] = event.stream, now
        for action in actions:
            if isinstance(action, Grant) and owner[action.ticket] in computed:
                computed[owner[action.ticket]] -= now - latest[action.ticket]
                latest[action.ticket] = now
        if isinstance(event, End):
            found.append(computed.pop(event.stream) + now)
    return found


class Delivered(NamedTuple):
    """Bytes per second of a drive with reads in flight, while a stream waited and while it computed."""

    waiting: float
    computing: float

    @property
    def lost(self) -> float:
        """Share of the drive's speed that is lost while cores compute."""
        return lost_share(1 / self.waiting, 1 / self.computing)

    def drive(self) -> Drive:
        """A modelled drive that delivers the same to reads like the recorded ones."""
        return Drive(self.waiting, contention=self.lost)


def delivered(recording: Recording) -> Delivered:
    """Bytes per second that the drive delivered while a recorded stream decoded.

    It includes everything between a read's request and its end. Bytes of a read count as arriving evenly, so reads
    longer than a computation hide some of the difference.
    """
    changes: list[tuple[float, int, float]] = []  # when, how many more wait, how many more bytes per second
    asked: dict[int, tuple[float, int]] = {}  # by read: when, and its bytes
    latest: dict[int, float] = {}  # by ticket: when it was asked, or the last block came
    passes, begun = 0, math.inf
    for now, event, actions in recording.steps:
        if isinstance(event, Begin):
            passes += 1
            begun = now if passes == 2 else begun  # the first is the prompt
        if isinstance(event, Acquire):
            latest[event.ticket] = now
        if isinstance(event, ReadDone):
            start, size = asked.pop(event.read)
            if begun < start < now:
                changes += [(start, 0, size / (now - start)), (now, 0, -size / (now - start))]
        for action in actions:
            if isinstance(action, Read):
                asked[action.read] = now, action.size
            if isinstance(action, Grant):
                changes += [(latest[action.ticket], 1, 0.0), (now, -1, 0.0)]
                latest[action.ticket] = now
    seconds, arrived = [0.0, 0.0], [0.0, 0.0]  # while nobody waits, while somebody does
    waits, pace, before = 0, 0.0, begun
    for when, more, faster in sorted(changes):
        if pace > _NOTHING and when > before:
            seconds[waits > 0] += when - before
            arrived[waits > 0] += pace * (when - before)
        waits, pace, before = waits + more, pace + faster, max(before, when)
    computing, waiting = (size / taken if taken else 0.0 for size, taken in zip(arrived, seconds, strict=True))
    return Delivered(waiting or computing, computing or waiting)


def typical(times: Iterable[Taken]) -> list[Taken]:
    """Median seconds of each size that was seen often."""
    by_size: dict[int, list[float]] = {}
    for size, seconds in times:
        by_size.setdefault(size, []).append(seconds)
    return [Taken(size, statistics.median(each)) for size, each in by_size.items() if len(each) >= OFTEN]


def memory_of(alone: Sequence[Taken], beside: Sequence[Taken]) -> Memory:
    """A modelled memory with the typical times of experts: ``alone``, and ``beside`` a delivering drive."""
    overhead, pace = line(alone)
    lost = [lost_share(overhead + size * pace, seconds) for size, seconds in beside]
    return Memory(1 / pace, overhead, contention=statistics.median(lost) if lost else 0.0)


def lost_share(alone: float, beside: float) -> float:
    """Share of speed lost by work that takes ``alone`` seconds alone, and ``beside`` seconds beside other work."""
    return max(0.0, 1 - alone / beside)


def bytes_used(recording: Recording) -> int:
    """Bytes of weights used by the last pass of a recorded run: all dense blocks, and the chosen experts."""
    length = max((h.extent.length for block, h in recording.setup.homes.items() if block.kind == "expert"), default=0)
    dense = sum(h.extent.length for block, h in recording.setup.homes.items() if block.kind == "dense")
    return dense + sum(map(len, _last(recording))) * length


def layer_seconds(recording: Recording, memory: Memory, seconds: float) -> float:
    """Seconds that a deep layer of a recorded run computes besides its weights.

    A token takes ``seconds`` with all weights in ``memory``.
    """
    computed = bytes_used(recording) / memory.bandwidth + memory.overhead * len(_last(recording))
    return max(0.0, seconds - computed) / sum(map(is_deep, layers_of(recording.setup.homes)))


def _last(recording: Recording) -> TokenRouting:
    """The experts chosen by the last pass."""
    return next(iter(passes_of(recording).values()))[-1].chosen


def guess_seconds(recording: Recording) -> float:
    """Median seconds of a guess; 0 without guesses."""
    found = [step.event.seconds for step in recording.steps if isinstance(step.event, Expect)]
    return statistics.median(found) if found else 0.0


def is_deep(layer: Layer) -> bool:
    """Whether ``layer`` computes besides its weights: not an embedding, norm or output layer."""
    return len(layer.dense) + len(layer.experts) > 1


def timed(layers: Iterable[Layer], seconds: Callable[[Layer], float]) -> list[Layer]:
    """``layers``, where each deep one computes ``seconds(layer)`` besides its weights."""
    return [replace(layer, seconds=seconds(layer)) if is_deep(layer) else layer for layer in layers]
