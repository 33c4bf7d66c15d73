"""Choices of routers between experts that are nearly equal: rounding decides them, and what follows is another text."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import torch
from torch import nn
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
        if count < scores.shape[-1] and scores.numel() // scores.shape[-1] % self.close.numel() == 0:
            self.close |= _close(scores, count).reshape(*self.close.shape, -1).any(-1)


def _close(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Where, of ``scores`` [..., choices], the best ``count`` and the others are hardly apart, [...]."""
    ordered = scores.double().sort(descending=True).values
    span = ordered[..., 0] - torch.where(ordered.isfinite(), ordered, torch.inf).amin(-1)
    return ordered[..., count - 1] - ordered[..., count] <= CLOSE * span


class LastChoices(TorchFunctionMode):
    """Notes which rows had a close choice at their last token, for each forward of a model inside of it."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        """Forwards of ``model`` have ``rows``."""
        super().__init__()
        self._model, self._rows = model, rows
        self._forwards: list[torch.Tensor] = []

    def __enter__(self) -> Self:
        self._handle = self._model.register_forward_pre_hook(self._begin)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._handle.remove()

    def close(self, new: int) -> torch.Tensor:
        """Of the last ``new`` forwards, which gave a token each, [rows, new]."""
        if not 0 < new <= len(self._forwards):
            return torch.zeros(self._rows, new, dtype=torch.bool)
        return torch.stack(self._forwards[-new:], 1)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.topk, torch.Tensor.topk) and args and self._forwards:
            scores, count = args[0].detach(), out[0].shape[-1]
            if count < scores.shape[-1] and scores.shape[0] % self._rows == 0:
                close = _close(scores, count).reshape(scores.shape[0], -1).any(-1)
                self._forwards[-1] |= close.reshape(self._rows, -1)[:, -1]
        return out

    def _begin(self, *_: Any) -> None:
        self._forwards.append(torch.zeros(self._rows, dtype=torch.bool))


@contextmanager
def noted_choices(rows: int, tokens: int, *, wanted: bool) -> Iterator[torch.Tensor]:
    """Notes which tokens of the forwards inside have a close choice, [rows, tokens]; none unless ``wanted``."""
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
