"""What happens to the planner (events) and what it wants done about it (actions)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .units import BlockId, Extent

Stream = int
"""One sequence of module calls, in practice one compute thread: leases and positions are kept per stream."""


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
    """A stream gives back one lease on ``block``."""

    stream: Stream
    block: BlockId


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


Event = Begin | End | Acquire | Release | Cancel | ReadDone | ReadFailed | Resize


# --- actions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grant:
    """``block`` is leased to the owner of ``ticket`` and lies in ``slot``."""

    ticket: int
    block: BlockId
    slot: Slot


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
    """Read ``parts``, neighbours on flash, at once; ``demand`` says that somebody waits for one of them."""

    read: int
    parts: tuple[Part, ...]
    demand: bool


@dataclass(frozen=True, slots=True)
class Discard:
    """Give ``length`` bytes at ``offset`` of the arena back to the system, before any later action."""

    offset: int
    length: int


Action = Grant | Refuse | Read | Discard
