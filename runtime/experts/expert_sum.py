"""Adds up the outputs of experts in the order of transformers' eager code, in whatever order they arrive."""

from collections.abc import Callable, Iterable

import torch

from .expert_groups import Groups

Output = tuple[int, slice, torch.Tensor]
"""An expert, a part of its rows, and its output for them [rows, width]."""
Add = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""As ``add_weighted``."""


class ExpertSum:
    """Experts are added in ascending order. An output that comes before its turn is kept until then."""

    def __init__(self, hidden: torch.Tensor, groups: Groups, weights: torch.Tensor, add: Add) -> None:
        """The sum has the shape and dtype of ``hidden`` [tokens, width]. ``weights`` [tokens, top_k] are the routing
        weights, on the device of ``groups``."""
        self.total = torch.zeros_like(hidden)
        self._groups, self._weights, self._add = groups, weights, add
        self._left = list(reversed(groups))
        self._kept: dict[int, list[tuple[slice, torch.Tensor]]] = {}

    def take(self, outputs: Iterable[Output]) -> None:
        """Add ``outputs``, or keep them. They hold all parts of each of their experts, in order."""
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
