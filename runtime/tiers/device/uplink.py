"""The source of the device tier: blocks of the host tier are copied, others are read past host memory.

It performs what ``tiering.planner.relay`` decides. Order of locks: a thread that holds the device's bridge may take the
host's, never the other way round. So an answer of the host's bridge is passed on from the copies' thread.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from ....kernels.devices.base import DeviceArena, Mark
from ....kernels.devices.copies import Copies
from ....kernels.devices.fences import Fences
from ....kernels.memory.arena import Arena
from ....kernels.waiting import no_waiting
from ....tiering.events import Event, Grant, Part, Refuse
from ....tiering.planner.relay import Copy, Landed, Relay
from ....tiering.units import BlockId
from ...tracing.recorder import Recorder
from ..bridge import Bridge

Done = Callable[[Exception | None], None]


class PastHost(Protocol):
    """Reads blocks to the device past host memory."""

    def read(self, part: Part, into: torch.Tensor, landed: Done) -> None:
        """Fill ``into``, bytes on the device, with the block of ``part``, and verify it; see Source.read."""

    def close(self) -> None:
        """End its threads, when nothing is read any more. Idempotent."""


class DeviceMemory:
    """The device's arena as the planner's memory."""

    def __init__(self, arena: DeviceArena) -> None:
        self._arena = arena

    def view(self, offset: int, length: int) -> torch.Tensor:
        """The bytes of a slot."""
        return self._arena.tensor(offset, torch.uint8, (length,))

    def discard(self, offset: int, length: int) -> None:
        """As Memory.discard."""
        self._arena.discard(offset, length)


class Uplink:
    """A Source for the device's planner."""

    def __init__(
        self,
        host: Bridge,
        arena: Arena,
        inside: Callable[[BlockId], bool],
        relay: Relay,
        copies: Copies,
        fences: Fences[Mark],
        bypass: PastHost,
    ) -> None:
        """``inside`` says whether a block passes through the host tier, of which ``host`` and ``arena`` are the bridge
        and the memory. All other blocks come by ``bypass``. A copy waits for the marks in ``fences`` on its slot."""
        self._host, self._arena, self._inside, self._relay = host, arena, inside, relay
        self._copies, self._fences, self._bypass = copies, fences, bypass
        self._lock = threading.Lock()  # over the relay and the next two, in no_waiting; no other lock is taken under it
        self._into: dict[tuple[int, BlockId], torch.Tensor] = {}
        self._landed: dict[int, Done] = {}
        self._ended = 0.0  # when the last copy ended
        self.recorder: Recorder | None = None  # takes notes, while a trace is recorded

    def read(self, parts: Sequence[Part], into: Sequence[torch.Tensor], landed: Done) -> None:
        """As Source.read."""
        if not self._inside(parts[0].block):
            ((part,), (target,)) = parts, into
            self._bypass.read(part, target, landed)
            return
        ticket = self._host.ticket()
        with no_waiting, self._lock:
            events = self._relay.start(ticket, parts)
            self._landed[ticket] = landed
            self._into |= {(ticket, part.block): target for part, target in zip(parts, into, strict=True)}
        self._tell(events, ticket)

    def begin(self) -> None:
        """A forward begins."""
        with no_waiting, self._lock:
            events = self._relay.begin()
        self._host.relay(events, self._answered)

    def close(self) -> None:
        """End the copies' threads, when nothing is read any more. Idempotent."""
        self._bypass.close()
        self._copies.close()

    def _tell(self, events: Sequence[Event], ticket: int) -> None:
        try:
            self._host.relay(events, self._answered)
        except Exception as error:  # the host tier is closed: the caller is told once
            self._answered(Refuse(ticket, error))

    def _answered(self, answer: Grant | Refuse) -> None:
        """Under the lock of the host's bridge."""
        if isinstance(answer, Refuse):
            with no_waiting, self._lock:
                ends = self._relay.refused(answer)
            self._copies.later(lambda: self._land(ends))
            return
        with no_waiting, self._lock:
            copy = self._relay.granted(answer)
            target = self._into.pop((copy.ticket, copy.part.block))
        source = self._arena.tensor(copy.source.offset, torch.uint8, (copy.part.extent.length,))
        after = self._fences.before(copy.part.slot.offset, copy.part.slot.length)
        asked = time.monotonic()
        self._copies.up(source, target, after, lambda error: self._copied(copy, asked, error))

    def _copied(self, copy: Copy, asked: float, error: Exception | None) -> None:
        """On the copies' thread."""
        since, self._ended = max(asked, self._ended), time.monotonic()
        if (recorder := self.recorder) is not None:
            recorder.copied(since, self._ended, copy.part.block, copy.part.extent.length, failed=error is not None)
        with no_waiting, self._lock:
            release, ends = self._relay.copied(copy, error)
        self._host.relay([release], self._answered)
        self._land(ends)

    def _land(self, ends: Sequence[Landed]) -> None:
        for end in ends:
            with no_waiting, self._lock:
                landed = self._landed.pop(end.ticket)
                for key in [key for key in self._into if key[0] == end.ticket]:
                    del self._into[key]
            landed(end.error)
