"""What the planner asks of an eviction policy."""

from collections.abc import Generator
from typing import Protocol

from ...units import BlockId


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
