"""The ports of the driver: interfaces to drives, memory and the machine."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ..events import Part

Place = TypeVar("Place")
"""Writable bytes of a slot: a memoryview in host memory, a tensor of bytes on a device."""
_Given = TypeVar("_Given", contravariant=True)
_Taken = TypeVar("_Taken", covariant=True)


class BlockSource(Protocol[_Given]):
    """A source of blocks: flash, or the host tier."""

    def read(self, parts: Sequence[Part], into: Sequence[_Given], landed: Callable[[Exception | None], None]) -> None:
        """Start to fill ``into`` with ``parts``, neighbours on flash, and to verify them. Any thread may call.

        ``landed`` is called once, on a thread of the source, when nothing writes to ``into`` any more. Its argument is
        None, BundleCorrupt, or ReadError if the drive fails for good. If this call raises, nothing has started.
        """


class TierMemory(Protocol[_Taken]):
    """The arena of a tier."""

    def view(self, offset: int, length: int) -> _Taken:
        """Writable bytes of a slot, PAGE aligned."""

    def discard(self, offset: int, length: int) -> None:
        """Give ``length`` bytes at ``offset`` back to the system. No slot may lie there. The content is lost."""


class Machine(Protocol):
    """The memory that this process shares with others."""

    def memory(self) -> tuple[int, int]:
        """Bytes still available before the machine or our control group runs out, and bytes in all.

        Raises OSError if the system does not tell.
        """
