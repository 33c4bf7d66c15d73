"""What the doing half needs from the world: the seams at which devices are plugged in, and faked in tests."""

from collections.abc import Sequence
from typing import Protocol

from .events import Part


class Flash(Protocol):
    """Where blocks come from."""

    async def read(self, parts: Sequence[Part], into: Sequence[memoryview]) -> None:
        """Fill ``into`` with ``parts``, neighbours on flash, and verify them. Several at a time, on one loop.

        Whether it returns or raises, nothing writes to ``into`` any more; it must not be cancelled. Raises
        BundleCorrupt, or ReadError when the drive fails for good.
        """


class Memory(Protocol):
    """The arena of a tier."""

    def view(self, offset: int, length: int) -> memoryview:
        """Writable bytes of a slot, PAGE aligned."""

    def discard(self, offset: int, length: int) -> None:
        """Give memory in which no slot lies back to the system. Its content is lost."""


class Machine(Protocol):
    """The memory that this process shares with others."""

    def memory(self) -> tuple[int, int]:
        """Bytes that may still be taken before the machine, or a control group we are in, runs out; bytes in all.

        Raises OSError where the system does not tell.
        """
