"""Tells the planner which experts come next: those that are certain, and those that the next layer will choose."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ...tiering.planner.planner import Planner
from ...tiering.units import BlockId
from ..tiers.bridge import Bridge
from .expert_blocks import ExpertBlocks
from .guessing import Guesses


class NextLayer(NamedTuple):
    """The experts of the next layer, and the guesses of which of them come."""

    blocks: ExpertBlocks
    guesses: Guesses


def _lacks_experts(planner: Planner) -> bool:
    """Whether there is anything to guess."""
    return not planner.has_all_experts


class Announcement:
    """One layer's announcement. The guess is made at most once, with the first call of ``announce``."""

    def __init__(
        self,
        following: NextLayer | None,
        bridge: Bridge,
        hidden: torch.Tensor,
        index: torch.Tensor,
        residuals: Sequence[BlockId],
    ) -> None:
        """``hidden`` [tokens, width] goes into this layer's experts, of which ``index`` [tokens, top_k] are chosen;
        ``residuals`` are those of the chosen ones."""
        self._next, self._bridge, self._hidden, self._index = following, bridge, hidden, index
        self._residuals = residuals
        self._guessed: list[BlockId] | None = None

    def announce(self, certain: Sequence[BlockId]) -> None:
        """Tell the planner that ``certain`` come next, then perhaps the guessed ones, and which residuals are of
        use."""
        seconds = 0.0
        if self._guessed is None:
            self._guessed = []
            if self._next is not None and self._bridge.speculation.active and self._bridge.look(_lacks_experts):
                start = time.monotonic()
                chosen = self._next.guesses.experts(self._hidden, self._index)
                self._guessed = self._next.blocks.in_order_of_flash(chosen)
                seconds = time.monotonic() - start
        if certain or self._guessed or self._residuals:
            self._bridge.expect(certain, self._guessed, seconds, self._residuals)
