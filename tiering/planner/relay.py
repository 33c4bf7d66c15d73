"""How blocks travel from the tier below: leased there, copied up one by one, given back (pure).

The tier above reads from the tier below as that one reads from flash. A read asks the tier below for its blocks
(``Acquire``); each is copied as soon as it is granted, and given back as soon as it is copied; the read has landed when
all are. Whoever leases for copies never waits while it needs what it holds, so it is no part of any deadlock there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..events import COPY_STREAM, Acquire, Begin, Event, Expect, Grant, Part, Refuse, Release, Slot
from ..units import BlockId


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy what lies in ``source`` of the tier below to the place of ``part``; tell ``copied`` of its end."""

    ticket: int
    part: Part
    source: Slot
    leased: tuple[BlockId, ...]


@dataclass(frozen=True, slots=True)
class Landed:
    """Nothing writes to the places of this read any more; what it ran into, if it failed."""

    ticket: int
    error: Exception | None


@dataclass(slots=True)
class _Lift:
    wanted: dict[BlockId, Part]  # not granted yet
    copying: set[BlockId] = field(default_factory=set)
    error: Exception | None = None


class Relay:
    """What is on its way up. ``order`` numbers the blocks that are used in the same order at every token."""

    def __init__(self, order: Iterable[BlockId]) -> None:
        self._place = {block: place for place, block in enumerate(order)}
        self._last = len(self._place)
        self._lifts: dict[int, _Lift] = {}

    @property
    def under_way(self) -> bool:
        return bool(self._lifts)

    def start(self, ticket: int, parts: Sequence[Part]) -> list[Event]:
        """``parts`` are wanted above: what to tell the tier below."""
        self._lifts[ticket] = _Lift({part.block: part for part in parts})
        blocks = tuple(part.block for part in parts)
        return [*self._passes(blocks), Acquire(ticket, COPY_STREAM, blocks)]

    def begin(self) -> list[Event]:
        """A token begins above. Below it does when its order begins anew: copies run ahead of tokens."""
        return [] if self._place else [Begin(COPY_STREAM)]

    def granted(self, grant: Grant) -> Copy:
        lift = self._lifts[grant.ticket]
        part = lift.wanted.pop(grant.block)
        lift.copying.add(grant.block)
        return Copy(grant.ticket, part, grant.slot, grant.leased)

    def refused(self, refusal: Refuse) -> list[Landed]:
        """Nothing more is granted for that ticket; the read has failed once what is being copied for it is done. It
        may be told twice."""
        lift = self._lifts.get(refusal.ticket)
        if lift is None:
            return []
        lift.wanted.clear()
        lift.error = lift.error or refusal.error
        return self._end(refusal.ticket)

    def copied(self, copy: Copy, error: Exception | None) -> tuple[Release, list[Landed]]:
        """The copy has ended, well or not: what to give back below, and the read's end if that was the last."""
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
        """Begin where the order begins anew with ``blocks``."""
        begins: list[Event] = []
        for block in blocks:
            place = self._place.get(block)
            if place is not None:
                if place <= self._last:
                    begins = [Begin(COPY_STREAM)]
                self._last = place
        return begins


def order_of(homes: Mapping[BlockId, object]) -> list[BlockId]:
    """The dense blocks among ``homes``, which are in the order of use."""
    return [block for block in homes if block.kind == "dense"]


def expected(
    event: Expect, absent_above: Callable[[BlockId], bool], absent_below: Callable[[BlockId], bool]
) -> tuple[Expect, Expect]:
    """What to tell the tier below and the one above of ``event``: below, what is absent above; above, of the guesses
    those that need only be copied. Nobody waits for flash on a guess."""
    absent = [block for block in event.guessed if absent_above(block)]
    certain = tuple(block for block in event.certain if absent_above(block))
    far = {block for block in absent if absent_below(block)}
    near = tuple(block for block in event.guessed if block not in far)
    below = Expect(COPY_STREAM, certain, tuple(absent), 0.0)
    return below, Expect(event.stream, event.certain, near, event.seconds, event.residuals)
