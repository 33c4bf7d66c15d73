"""What the planner asks of an eviction policy."""

from collections.abc import Callable, Generator
from typing import Protocol

from ...units import BlockId
from ..route import Route


class Eviction(Protocol):
    """``used`` also counts for blocks that are not resident; a block that is read because it is wanted is used first,
    and inserted when it has come."""

    def used(self, block: BlockId) -> None: ...
    def inserted(self, block: BlockId) -> None: ...
    def removed(self, block: BlockId) -> None: ...
    def tick(self) -> None:
        """One more forward has begun."""

    def victims(self) -> Generator[BlockId, None, None]:
        """Resident blocks, the one to go first first. The planner may evict while it iterates."""


Policy = Callable[[Route], Eviction]
"""Makes an eviction policy for streams on that route."""
