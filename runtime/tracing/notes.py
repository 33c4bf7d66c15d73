"""Notes of what a running model does, which a trace is made of (pure). All times are in seconds, on one clock."""

from typing import NamedTuple

from ...tiering.events import Read
from ...tiering.units import BlockId

FORWARD = "forward"
"""The name of the outermost span of a thread: one call of the model."""


class Forward(NamedTuple):
    """A thread, by number and name, enters the model's forward; it is in no other."""

    at: float
    thread: int
    called: str


class Enter(NamedTuple):
    """A thread enters the forward of the module ``name``."""

    at: float
    thread: int
    name: str


class Leave(NamedTuple):
    """A thread leaves the module ``name``; FORWARD for the model's forward."""

    at: float
    thread: int
    name: str


class Tokens(NamedTuple):
    """The forward that a thread is in has ``given`` tokens."""

    at: float
    thread: int
    given: int


class Stall(NamedTuple):
    """A thread has waited since ``since`` for ``block``; None if it was refused."""

    at: float
    thread: int
    since: float
    block: BlockId | None


class ReadStarted(NamedTuple):
    """``read`` is handed to the driver."""

    at: float
    read: Read


class ReadLanded(NamedTuple):
    """Read number ``read`` lies in its slots, verified, or has ``failed``."""

    at: float
    read: int
    failed: bool


class Sample(NamedTuple):
    """Blocks asked for until now that were in memory, and that were not."""

    at: float
    hits: int
    misses: int


class KVStarted(NamedTuple):
    """Read number ``read`` of ``pages`` neighbouring KV pages, ``size`` bytes, is handed to the drive."""

    at: float
    read: int
    pages: int
    size: int


class KVLanded(NamedTuple):
    """The pages of KV read number ``read`` are in memory, verified, or it has ``failed``."""

    at: float
    read: int
    failed: bool


class KVStall(NamedTuple):
    """A thread has waited since ``since`` for KV pages, or for room for them."""

    at: float
    thread: int
    since: float


class BlockCopied(NamedTuple):
    """``block`` of ``size`` bytes was copied to the device since ``since``, or that has ``failed``."""

    at: float
    since: float
    block: BlockId
    size: int
    failed: bool


_ComputeNote = Forward | Enter | Leave | Tokens | Stall | KVStall
_ReadNote = ReadStarted | ReadLanded | Sample | KVStarted | KVLanded | BlockCopied
Note = _ComputeNote | _ReadNote
