"""The interface of eviction policies (pure).

The policies are beside this file, and registry.py lists them. auto.py ranks where nothing else is asked for.
tiering/planner/evicting.py applies them: it skips blocks that are leased or expected.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from ...units import BlockId
from ..prefetch.route import Route


class Eviction(Protocol):
    """Ranks resident blocks. A block read on demand is ``used`` first, and ``inserted`` when it has arrived."""

    @property
    def name(self) -> str:
        """The name of the policy that decides now."""

    def used(self, blocks: Sequence[BlockId]) -> None:
        """A stream wants ``blocks`` together, resident or not."""

    def inserted(self, block: BlockId) -> None:
        """``block`` has become resident."""

    def removed(self, block: BlockId) -> None:
        """``block`` is resident no more."""

    def tick(self) -> None:
        """A forward begins."""

    def victims(self) -> Generator[BlockId, None, None]:
        """Resident blocks, the first to evict first. The planner may evict during the iteration."""


Policy = Callable[[Route], Eviction]
"""Makes an eviction policy for the streams on a route."""
