"""Adds up what experts give, in the order in which transformers' eager code does, whatever the order they come in."""

from collections.abc import Callable, Iterable

import torch

from .expert_groups import Groups

Output = tuple[int, slice, torch.Tensor]
"""An expert, a part of its rows, and what it gives for them [rows, width]."""
Add = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""As ``add_weighted``."""


class ExpertSum:
    """Experts are added ascending; what comes before its turn is kept until then."""

    def __init__(self, hidden: torch.Tensor, groups: Groups, weights: torch.Tensor, add: Add) -> None:
        """``hidden`` [tokens, width] tells what the sum looks like; ``weights`` [tokens, top_k] are those of
        ``groups``, which lie on the same device."""
        self.total = torch.zeros_like(hidden)
        self._groups, self._weights, self._add = groups, weights, add
        self._left = list(reversed(groups))
        self._kept: dict[int, list[tuple[slice, torch.Tensor]]] = {}

    def take(self, outputs: Iterable[Output]) -> None:
        """``outputs`` are all that there are of each expert among them; its parts in order."""
        for expert, part, out in outputs:
            kept = self._kept.setdefault(expert, [])
            if expert == self._left[-1]:
                self._add_part(expert, part, out)
            else:
                kept.append((part, out))
        while self._left and self._left[-1] in self._kept:
            expert = self._left.pop()
            for part, out in self._kept.pop(expert):
                self._add_part(expert, part, out)

    def _add_part(self, expert: int, part: slice, out: torch.Tensor) -> None:
        rows, picks = (each[part] for each in self._groups[expert])
        self._add(self.total, rows, out, self._weights[rows, picks])
