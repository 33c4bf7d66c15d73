"""A shadow cache: the blocks that a policy would keep, without their bytes (pure)."""

from collections.abc import Collection, Iterable, Sequence
from contextlib import closing

from ...units import BlockId
from .interface import Eviction


class Shadow:
    """A cache of ``room`` blocks of equal size, managed by ``policy`` as the planner does."""

    def __init__(self, policy: Eviction, room: int = 0) -> None:
        self.policy, self.room = policy, room
        self._resident: set[BlockId] = set()

    def fill(self, blocks: Iterable[BlockId]) -> None:
        """Make ``blocks`` resident without a use."""
        for block in blocks:
            self._resident.add(block)
            self.policy.inserted(block)

    def use(self, blocks: Sequence[BlockId]) -> list[BlockId]:
        """Use ``blocks`` together, and return the misses. They are resident afterwards, as far as there is room."""
        self.policy.used(blocks)
        absent = [block for block in blocks if block not in self._resident]
        self.shrink(self.room - len(absent), blocks)
        self.fill(absent[: max(0, self.room - len(self._resident))])
        return absent

    def shrink(self, room: int, wanted: Collection[BlockId] = ()) -> None:
        """Evict until at most ``room`` blocks are left, or only ``wanted`` ones."""
        if len(self._resident) <= room:
            return
        with closing(self.policy.victims()) as victims:
            for victim in victims:
                if victim not in wanted:
                    self._resident.remove(victim)
                    self.policy.removed(victim)
                    if len(self._resident) <= room:
                        return
