"""What a cache would hold under a policy: blocks by name, no bytes (pure)."""

from collections.abc import Collection, Iterable, Sequence
from contextlib import closing

from ...units import BlockId
from .policy import Eviction


class Shadow:
    """A cache of ``room`` blocks of equal size under ``policy``, as the planner would manage it."""

    def __init__(self, policy: Eviction, room: int = 0) -> None:
        self.policy, self.room = policy, room
        self._resident: set[BlockId] = set()

    def fill(self, blocks: Iterable[BlockId]) -> None:
        """Let ``blocks`` be there, as if they had come on their own."""
        for block in blocks:
            self._resident.add(block)
            self.policy.inserted(block)

    def use(self, blocks: Sequence[BlockId]) -> list[BlockId]:
        """``blocks`` are wanted side by side: those that were not there. Now they are, as far as there is room."""
        self.policy.used(blocks)
        absent = [block for block in blocks if block not in self._resident]
        self.shrink(self.room - len(absent), blocks)
        self.fill(absent[: max(0, self.room - len(self._resident))])
        return absent

    def shrink(self, room: int, wanted: Collection[BlockId] = ()) -> None:
        """Evict until at most ``room`` blocks are left, or only those that are ``wanted``."""
        if len(self._resident) <= room:
            return
        with closing(self.policy.victims()) as victims:
            for victim in victims:
                if victim not in wanted:
                    self._resident.remove(victim)
                    self.policy.removed(victim)
                    if len(self._resident) <= room:
                        return
