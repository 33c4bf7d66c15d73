"""The blocks of one module's experts: by number, in the order of flash, and their residuals."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest

import torch

from ...tiering.store.bundle.manifest import Block
from ...tiering.units import BlockId
from ..tiers.bridge import Bridge


class ExpertBlocks:
    """``ids`` are the blocks of the experts by number, which ``bridge`` leases."""

    def __init__(self, stacks: Sequence[Sequence[Block]], bridge: Bridge) -> None:
        """``stacks`` in the order of flash: for each expert its block, and those with further bit planes of it."""
        self._bridge = bridge
        self._place = {stack[0].id.part: place for place, stack in enumerate(stacks)}
        self._as_numbered = all(expert == place for expert, place in self._place.items())
        self.stacks = sorted(stacks, key=lambda stack: stack[0].id.part)
        """By number."""
        self.ids = [stack[0].id for stack in self.stacks]
        self._residuals = [[block.id for block in stack[1:]] for stack in self.stacks]
        self._has_residuals = any(self._residuals)

    def __len__(self) -> int:
        return len(self.ids)

    def missing(self, experts: Iterable[int]) -> frozenset[int]:
        """Those of ``experts`` that are not in memory."""
        return frozenset(expert for expert in experts if self._bridge.is_missing(self.ids[expert]))

    def in_order_of_flash(self, experts: Iterable[int]) -> list[BlockId]:
        """The blocks of ``experts``. Where these do not lie by number they are sorted, so that neighbours are asked for
        together."""
        if not self._as_numbered:
            experts = sorted(experts, key=self._place.__getitem__)
        return [self.ids[expert] for expert in experts]

    def residuals(self, index: torch.Tensor, weights: torch.Tensor) -> list[BlockId]:
        """The residuals of the experts ``index`` [tokens, top_k], those first that change most: lower planes before
        higher ones, and among equal planes the experts with the largest ``weights`` [tokens, top_k], summed over all
        tokens."""
        if not self._has_residuals:
            return []
        experts = len(self.ids)
        shares = weights.cpu().flatten().float()
        total = torch.zeros(experts + 1).scatter_add_(0, index.flatten().clamp(max=experts), shares)
        chosen = {expert for expert in index.flatten().tolist() if expert < experts}
        hottest = sorted(chosen, key=total.tolist().__getitem__, reverse=True)
        planes = zip_longest(*(self._residuals[expert] for expert in hottest))
        return [block for plane in planes for block in plane if block is not None]
