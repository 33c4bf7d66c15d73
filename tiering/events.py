"""Events that the planner of weights handles, and actions that it returns (pure). Those of KV: tiering/kv/events.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from .units import BlockId, Extent

Stream = int
"""One sequence of module calls, in practice one compute thread: leases and positions are kept per stream."""

PINNING_STREAM: Stream = -1
"""The stream that holds leases which are never released."""

COPY_STREAM: Stream = -2
"""The stream that copies blocks to the device tier. It always releases what it holds."""


class Slot(NamedTuple):
    """A place in the arena of a tier: ``length`` bytes at ``offset``, inside ``region``."""

    region: str
    offset: int
    length: int


# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """A stream enters the model's forward."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class End:
    """A stream leaves the model's forward, for whatever reason. Its leases and requests are taken back."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Acquire:
    """A stream wants a lease on each of ``blocks``, all different.

    They are granted one by one, resident ones first.
    """

    ticket: int
    stream: Stream
    blocks: tuple[BlockId, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """A stream gives back one lease on each of ``blocks``."""

    stream: Stream
    blocks: tuple[BlockId, ...]


@dataclass(frozen=True, slots=True)
class Expect:
    """Blocks that a stream will ask for next, soonest first: ``certain``, then ``guessed``. It replaces the last one.

    The guess took ``seconds``. ``residuals`` are those of the experts computed now, the most important first. They are
    used if they are resident, and never waited for.
    """

    stream: Stream
    certain: tuple[BlockId, ...]
    guessed: tuple[BlockId, ...]
    seconds: float
    residuals: tuple[BlockId, ...] = ()


@dataclass(frozen=True, slots=True)
class Cancel:
    """Drop ``ticket``. Leases already granted stay with their stream."""

    ticket: int


@dataclass(frozen=True, slots=True)
class ReadDone:
    """Every block of read number ``read`` is in its slot, and verified."""

    read: int


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """Read number ``read`` failed; nothing in its slots may be used."""

    read: int
    error: Exception


@dataclass(frozen=True, slots=True)
class Resize:
    """Set ``limits``: bytes that each named region may use of its capacity."""

    limits: Mapping[str, int]


Event = Begin | End | Acquire | Release | Expect | Cancel | ReadDone | ReadFailed | Resize


# --- actions --------------------------------------------------------------------------------------------------------


class Grant(NamedTuple):
    """``block``, in ``slot``, is leased to the owner of ``ticket``.

    ``residual_slots`` are those of its residuals in memory, up to the first one that is missing. They are leased too.
    """

    ticket: int
    block: BlockId
    slot: Slot
    residual_slots: tuple[Slot, ...] = ()

    @property
    def leased(self) -> tuple[BlockId, ...]:
        """All blocks leased by this grant."""
        return self.block, *(self.block.residual(plane) for plane in range(1, len(self.residual_slots) + 1))


@dataclass(frozen=True, slots=True)
class Refuse:
    """``ticket`` gets no more blocks, because of ``error``."""

    ticket: int
    error: Exception


@dataclass(frozen=True, slots=True)
class Part:
    """One block of a read: from ``extent`` on flash into ``slot``."""

    block: BlockId
    extent: Extent
    slot: Slot


@dataclass(frozen=True, slots=True)
class Read:
    """Read ``parts``, neighbours on flash, in one request."""

    read: int
    parts: tuple[Part, ...]
    purpose: "Purpose"

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.extent.length for part in self.parts)


class Purpose(Enum):
    """The reason for a read: a stream waits, it will certainly be wanted, it is a guess, or it refines a product."""

    DEMAND = "demand"
    CERTAIN = "prefetch"
    GUESS = "guess"
    REFINE = "refine"


@dataclass(frozen=True, slots=True)
class Discard:
    """Give ``length`` bytes at ``offset`` of the arena back to the system, before any later action."""

    offset: int
    length: int


Action = Grant | Refuse | Read | Discard
