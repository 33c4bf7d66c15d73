"""Choices of routers between experts that are nearly equal: rounding decides them, and what follows is another text."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CLOSE = 0.01
"""The gap of a close choice, as a share of the span of the scores. What a format rounds moves scores by about that."""


class Choices(TorchFunctionMode):
    """Notes which tokens had a close choice, of forwards inside of it."""

    def __init__(self, rows: int, tokens: int) -> None:
        """The forwards have ``tokens`` in each of ``rows``."""
        super().__init__()
        self.close = torch.zeros(rows, tokens, dtype=torch.bool)
        """[rows, tokens]."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.topk, torch.Tensor.topk) and args:
            self._note(args[0].detach(), out[0].shape[-1])
        return out

    def _note(self, scores: torch.Tensor, count: int) -> None:
        """``count`` of the ``scores`` [..., choices] are taken."""
        if count == scores.shape[-1] or scores.numel() // scores.shape[-1] % self.close.numel():
            return
        ordered = scores.double().sort(descending=True).values
        span = ordered[..., 0] - torch.where(ordered.isfinite(), ordered, torch.inf).amin(-1)
        close = ordered[..., count - 1] - ordered[..., count] <= CLOSE * span
        self.close |= close.reshape(*self.close.shape, -1).any(-1)


@contextmanager
def noted_choices(rows: int, tokens: int, *, wanted: bool) -> Iterator[torch.Tensor]:
    """Which tokens have a close choice in the forwards inside, [rows, tokens]; none where that is not ``wanted``."""
    choices = Choices(rows, tokens)
    with choices if wanted else nullcontext():
        yield choices.close


@dataclass(frozen=True)
class PerToken:
    """An outcome of which ``close`` [rows, tokens] says where a router had a close choice. ``parts``: a tensor, or
    a list of tensors and other things; what has a number for each token has it in the first dimensions."""

    parts: Any
    close: torch.Tensor

    def decided(self, close: torch.Tensor) -> list[Any]:
        """The parts, without what comes from a token that ``close`` marks, and from those after it in its row."""
        before = (close.cumsum(1) == 0).flatten()
        parts = self.parts if isinstance(self.parts, list) else [self.parts]
        return [_rows(part, before) for part in parts]


def _rows(part: Any, kept: torch.Tensor) -> Any:
    per_token = isinstance(part, torch.Tensor) and kept.numel() in accumulate(part.shape, operator.mul)
    return part.reshape(kept.numel(), -1)[kept] if per_token else part
