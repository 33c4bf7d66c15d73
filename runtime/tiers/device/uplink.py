"""What the device tier reads from: blocks of the host tier, copied up; and those that never lie there, from flash.

The effects of ``tiering.relay``. Its locks: the device's bridge may be held while the host's is taken, never the other
way round. So what the host's bridge answers is not passed on to the device's from there, but on the copies' thread.
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


class Straight(Protocol):
    """A way up past the host tier."""

    def read(self, part: Part, into: torch.Tensor, landed: Done) -> None:
        """Fill ``into``, bytes on the device, with the block of ``part``, and verify it; see Source.read."""

    def close(self) -> None: ...


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
    """``inside`` says whether a block passes through the host tier, whose bridge and arena are ``host`` and ``arena``;
    the others come ``straight``. A copy waits for what ``fences`` know of its place."""

    def __init__(
        self,
        host: Bridge,
        arena: Arena,
        inside: Callable[[BlockId], bool],
        relay: Relay,
        copies: Copies,
        fences: Fences[Mark],
        straight: Straight,
    ) -> None:
        self._host, self._arena, self._inside, self._relay = host, arena, inside, relay
        self._copies, self._fences, self._straight = copies, fences, straight
        self._lock = threading.Lock()  # over the relay and what follows, in no_waiting; nothing else is taken under it
        self._into: dict[tuple[int, BlockId], torch.Tensor] = {}
        self._landed: dict[int, Done] = {}
        self._ended = 0.0  # when the last copy did
        self.recorder: Recorder | None = None  # who takes notes, if anybody does

    def read(self, parts: Sequence[Part], into: Sequence[torch.Tensor], landed: Done) -> None:
        """As Source.read."""
        if not self._inside(parts[0].block):
            ((part,), (target,)) = parts, into
            self._straight.read(part, target, landed)
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
        """When nothing is read any more: end the copies' threads. Idempotent."""
        self._straight.close()
        self._copies.close()

    def _tell(self, events: Sequence[Event], ticket: int) -> None:
        try:
            self._host.relay(events, self._answered)
        except Exception as error:  # closed, now or before: whoever waits is told once
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
