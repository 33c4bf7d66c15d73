"""Moves blocks from the host tier to the device tier: lease, copy, release (pure).

The device tier reads from the host tier as the host tier reads from flash. A read asks the host tier for its blocks
(``Acquire``). Each block is copied as soon as it is granted, and released as soon as it is copied. The read has landed
when all are. The copier never waits while it holds a lease that it still needs, so it is in no deadlock.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..events import COPY_STREAM, Acquire, Begin, Event, Expect, Grant, Part, Refuse, Release, Slot
from ..units import BlockId


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy the host slot ``source`` to the device slot of ``part``, and call ``copied`` at the end."""

    ticket: int
    part: Part
    source: Slot
    leased: tuple[BlockId, ...]


@dataclass(frozen=True, slots=True)
class Landed:
    """A read has ended: nothing writes to its slots any more. ``error`` says why it failed, if it did."""

    ticket: int
    error: Exception | None


@dataclass(slots=True)
class _Lift:
    wanted: dict[BlockId, Part]  # not granted yet
    copying: set[BlockId] = field(default_factory=set)
    error: Exception | None = None


class Relay:
    """Reads of the device tier under way. ``order`` lists the blocks that every token uses in the same order."""

    def __init__(self, order: Iterable[BlockId]) -> None:
        self._place = {block: place for place, block in enumerate(order)}
        self._last = len(self._place)
        self._lifts: dict[int, _Lift] = {}

    def start(self, ticket: int, parts: Sequence[Part]) -> list[Event]:
        """Start a read of ``parts``; the events for the host tier."""
        self._lifts[ticket] = _Lift({part.block: part for part in parts})
        blocks = tuple(part.block for part in parts)
        return [*self._passes(blocks), Acquire(ticket, COPY_STREAM, blocks)]

    def begin(self) -> list[Event]:
        """A token begins on the device. On the host it begins when the order begins anew: copies run ahead of
        tokens."""
        return [] if self._place else [Begin(COPY_STREAM)]

    def granted(self, grant: Grant) -> Copy:
        lift = self._lifts[grant.ticket]
        part = lift.wanted.pop(grant.block)
        lift.copying.add(grant.block)
        return Copy(grant.ticket, part, grant.slot, grant.leased)

    def refused(self, refusal: Refuse) -> list[Landed]:
        """The host tier refused a ticket: its read fails when the copies under way are done. May be called twice."""
        lift = self._lifts.get(refusal.ticket)
        if lift is None:
            return []
        lift.wanted.clear()
        lift.error = lift.error or refusal.error
        return self._end(refusal.ticket)

    def copied(self, copy: Copy, error: Exception | None) -> tuple[Release, list[Landed]]:
        """A copy has ended: the release for the host tier, and the end of the read if that was its last copy."""
        lift = self._lifts[copy.ticket]
        lift.copying.remove(copy.part.block)
        lift.error = lift.error or error
        return Release(COPY_STREAM, copy.leased), self._end(copy.ticket)

    def _end(self, ticket: int) -> list[Landed]:
        lift = self._lifts[ticket]
        if lift.wanted or lift.copying:
            return []
        del self._lifts[ticket]
        return [Landed(ticket, lift.error)]

    def _passes(self, blocks: Sequence[BlockId]) -> list[Event]:
        """A ``Begin`` where the order begins anew with ``blocks``."""
        begins: list[Event] = []
        for block in blocks:
            place = self._place.get(block)
            if place is not None:
                if place <= self._last:
                    begins = [Begin(COPY_STREAM)]
                self._last = place
        return begins


def order_of(homes: Mapping[BlockId, object]) -> list[BlockId]:
    """The dense blocks of ``homes``, which is in the order of use."""
    return [block for block in homes if block.kind == "dense"]


def expected(
    event: Expect, absent_above: Callable[[BlockId], bool], absent_below: Callable[[BlockId], bool]
) -> tuple[Expect, Expect]:
    """``event`` for the host tier and for the device tier.

    The host tier expects blocks absent on the device. The device tier expects only guesses that are in host memory: a
    guess never waits for flash.
    """
    absent = [block for block in event.guessed if absent_above(block)]
    certain = tuple(block for block in event.certain if absent_above(block))
    far = {block for block in absent if absent_below(block)}
    near = tuple(block for block in event.guessed if block not in far)
    below = Expect(COPY_STREAM, certain, tuple(absent), 0.0)
    return below, Expect(event.stream, event.certain, near, event.seconds, event.residuals)
