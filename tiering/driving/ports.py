"""What the doing half needs from the world: the seams at which devices are plugged in, and faked in tests."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ..events import Part

Place = TypeVar("Place")
"""Where bytes of a slot can be written: a memoryview in host memory, a tensor of bytes on a device."""
_Given = TypeVar("_Given", contravariant=True)
_Taken = TypeVar("_Taken", covariant=True)


class ReadPort(Protocol[_Given]):
    """Where blocks come from: flash, or the tier below."""

    def read(self, parts: Sequence[Part], into: Sequence[_Given], landed: Callable[[Exception | None], None]) -> None:
        """Start to fill ``into`` with ``parts``, neighbours on flash, and to verify them. From any thread; several at
        a time.

        ``landed`` is called once, on a thread of the source, when nothing writes to ``into`` any more: with None, or
        with BundleCorrupt, or ReadError where the drive fails for good. What is raised here has not started anything.
        """


class Memory(Protocol[_Taken]):
    """The arena of a tier."""

    def view(self, offset: int, length: int) -> _Taken:
        """Writable bytes of a slot, PAGE aligned."""

    def discard(self, offset: int, length: int) -> None:
        """Give memory in which no slot lies back to the system. Its content is lost."""


Flash = ReadPort[memoryview]
"""Blocks on a drive, read into host memory."""


class Machine(Protocol):
    """The memory that this process shares with others."""

    def memory(self) -> tuple[int, int]:
        """Bytes that may still be taken before the machine, or a control group we are in, runs out; bytes in all.

        Raises OSError where the system does not tell.
        """
