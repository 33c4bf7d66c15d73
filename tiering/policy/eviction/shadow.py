"""What a cache would hold under a policy: blocks by name, no bytes (pure)."""

from collections.abc import Iterable
from contextlib import closing

from ...units import BlockId
from .policy import Eviction


class Shadow:
    """A cache of ``room`` blocks of equal size under ``policy``."""

    def __init__(self, policy: Eviction, room: int = 0) -> None:
        self.policy, self.room = policy, room
        self._resident: set[BlockId] = set()
        self._module = ""
        self._layer: set[BlockId] = set()  # what the layer that is computed has used: it needs them side by side

    def fill(self, blocks: Iterable[BlockId]) -> None:
        """Let ``blocks`` be there, as if they had come on their own."""
        for block in blocks:
            self._resident.add(block)
            self.policy.inserted(block)

    def tick(self) -> None:
        """One more forward has begun."""
        self._module = ""
        self.policy.tick()

    def use(self, block: BlockId) -> bool:
        """``block`` is used: whether it was there. Now it is, if there is room beside what its layer has used."""
        if block.module != self._module:
            self._module = block.module
            self._layer.clear()
        self._layer.add(block)
        self.policy.used(block)
        if block in self._resident:
            return True
        self.shrink(self.room - 1)
        if len(self._resident) < self.room:
            self.fill([block])
        return False

    def shrink(self, room: int) -> None:
        """Evict until at most ``room`` blocks are left, or only those that must stay."""
        if len(self._resident) <= room:
            return
        with closing(self.policy.victims()) as victims:
            for victim in victims:
                if victim not in self._layer:
                    self._resident.remove(victim)
                    self.policy.removed(victim)
                    if len(self._resident) <= room:
                        return
