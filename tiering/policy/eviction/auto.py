"""Follows the policy that hits most in the run itself (pure)."""

from collections.abc import Callable, Generator, Sequence

from ...units import BlockId
from .interface import Eviction
from .shadow import Shadow

_DECAY = 0.97
"""Factor by which earlier hits count less, per forward."""
_CLEARLY = 0.003
"""Another policy is followed when it hit more by this share of all uses."""
_SAMPLE = 4
"""Policies are compared on the first 4 layers, then on one layer in 4."""


class Auto:
    """Follows the policy that would have hit most recently. Of equals, the earlier one in ``candidates``.

    From the first eviction on, each candidate manages a shadow of the cache for some of the layers, and their hits are
    compared. A policy that follows bad predictions is left as soon as its shadow shows it. The idea of comparing
    policies on a sample is from "Adaptive Insertion Policies for High Performance Caching".
    """

    def __init__(self, candidates: Sequence[Callable[[], Eviction]]) -> None:
        self._policies = [make() for make in candidates]
        self._shadows = [Shadow(make()) for make in candidates]
        self._hits = [0.0] * len(candidates)
        self._uses = 0.0
        self._followed = 0
        self._sampled: dict[str, bool] = {}  # by module: whether its layer is in the sample
        self._resident: dict[BlockId, None] = {}
        self._most = 0  # most blocks resident at once since the forward began
        self._full = False

    @property
    def name(self) -> str:
        return self._policies[self._followed].name

    def used(self, blocks: Sequence[BlockId]) -> None:
        for policy in self._policies:
            policy.used(blocks)
        sample = [block for block in blocks if self._is_sampled(block.module)]
        if not self._full:
            for shadow in self._shadows:
                shadow.policy.used(sample)
            return
        self._uses += len(sample)
        for number, shadow in enumerate(self._shadows):
            self._hits[number] += len(sample) - len(shadow.use(sample))

    def inserted(self, block: BlockId) -> None:
        self._resident[block] = None
        self._most = max(self._most, len(self._resident))
        for policy in self._policies:
            policy.inserted(block)

    def removed(self, block: BlockId) -> None:
        del self._resident[block]
        for policy in self._policies:
            policy.removed(block)

    def tick(self) -> None:
        for policy in self._policies:
            policy.tick()
        for shadow in self._shadows:
            shadow.policy.tick()
        if self._full:
            self._resize_shadows()
        best = max(self._hits)
        if best > self._hits[self._followed] + _CLEARLY * self._uses:
            self._followed = self._hits.index(best)
        self._hits = [hits * _DECAY for hits in self._hits]
        self._uses *= _DECAY

    def victims(self) -> Generator[BlockId, None, None]:
        if not self._full:
            self._full = True
            for shadow in self._shadows:
                shadow.fill(block for block in self._resident if self._sampled.get(block.module))
        yield from self._policies[self._followed].victims()

    def _is_sampled(self, module: str) -> bool:
        found = self._sampled.get(module)
        if found is None:
            number = len(self._sampled)
            found = self._sampled[module] = number < _SAMPLE or number % _SAMPLE == 0
        return found

    def _resize_shadows(self) -> None:
        """Give the shadows the sample's share of the cache."""
        layers = max(1, len(self._sampled))  # guesses may fill the cache before anything is used
        room = self._most * sum(self._sampled.values()) // layers
        for shadow in self._shadows:
            shadow.room = room
            shadow.shrink(room)
        self._most = len(self._resident)
