"""What the planner asks of an eviction policy."""

from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from ...units import BlockId
from ..prefetch.module_order import Route


class Eviction(Protocol):
    """A block that is read because it is wanted is used first, and inserted when it has come."""

    @property
    def name(self) -> str:
        """Of the policy that decides now."""

    def used(self, blocks: Sequence[BlockId]) -> None:
        """``blocks`` are wanted side by side, resident or not."""

    def inserted(self, block: BlockId) -> None: ...
    def removed(self, block: BlockId) -> None: ...
    def tick(self) -> None:
        """One more forward has begun."""

    def victims(self) -> Generator[BlockId, None, None]:
        """Resident blocks, the one to go first first. The planner may evict while it iterates."""


Policy = Callable[[Route], Eviction]
"""Makes an eviction policy for streams on that route."""
