"""What happens to the planner (events) and what it wants done about it (actions)."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from .units import BlockId, Extent

Stream = int
"""One sequence of module calls, in practice one compute thread: leases and positions are kept per stream."""

HOUSE: Stream = -1
"""The stream that holds the leases which are never given back."""

COPY_STREAM: Stream = -2
"""The stream that copies blocks to the tier above: what it holds it gives back whatever else happens."""


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
    """A stream leaves the model's forward, in whatever way; whatever it still holds or wants is taken back."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Acquire:
    """A stream wants a lease on each of ``blocks``, no two the same.

    They are granted one by one, those already here first.
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
    """What a stream will ask for next, soonest first: ``certain``, then ``guessed``. Takes the place of the last one.

    The guess took ``seconds`` to make. ``residuals`` are those of the experts that the stream computes now, the ones
    that change most first: they are of use if they are here, and are not waited for.
    """

    stream: Stream
    certain: tuple[BlockId, ...]
    guessed: tuple[BlockId, ...]
    seconds: float
    residuals: tuple[BlockId, ...] = ()


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for ``ticket`` any more; leases already granted stay with their stream."""

    ticket: int


@dataclass(frozen=True, slots=True)
class ReadDone:
    """Every block of read number ``read`` lies in its slot, verified."""

    read: int


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """Read number ``read`` failed; nothing in its slots may be used."""

    read: int
    error: Exception


@dataclass(frozen=True, slots=True)
class Resize:
    """The regions named may use ``limits`` bytes of their capacity from now on."""

    limits: Mapping[str, int]


Event = Begin | End | Acquire | Release | Expect | Cancel | ReadDone | ReadFailed | Resize


# --- actions --------------------------------------------------------------------------------------------------------


class Grant(NamedTuple):
    """``block`` is leased to the owner of ``ticket`` and lies in ``slot``. So are its first residuals, as far as they
    are in memory without a gap: in ``residual_slots``."""

    ticket: int
    block: BlockId
    slot: Slot
    residual_slots: tuple[Slot, ...] = ()

    @property
    def leased(self) -> tuple[BlockId, ...]:
        """All that is leased by it."""
        return self.block, *(self.block.residual(plane) for plane in range(1, len(self.residual_slots) + 1))


@dataclass(frozen=True, slots=True)
class Refuse:
    """``ticket`` will not get any more blocks, for the reason given."""

    ticket: int
    error: Exception


@dataclass(frozen=True, slots=True)
class Part:
    """One block of a read: from ``extent`` into ``slot``."""

    block: BlockId
    extent: Extent
    slot: Slot


@dataclass(frozen=True, slots=True)
class Read:
    """Read ``parts``, neighbours on flash, at once."""

    read: int
    parts: tuple[Part, ...]
    purpose: "Purpose"

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.extent.length for part in self.parts)


class Purpose(Enum):
    """Why a read is made: somebody waits for it, it will certainly be wanted, it was guessed, or it refines what
    is computed."""

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
