"""Keeps gradients from being lost without a word: what was computed on streamed weights has none."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from ...tiering.errors import PenstockError

_REASON = "no gradients flow through streamed weights; compute under torch.no_grad(), or train with transformers itself"


class _NoGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise PenstockError(_REASON)


def without_gradients(out: Any, inputs: Sequence[torch.Tensor]) -> Any:
    """``out``, which was computed on ``inputs``, with an error for whoever asks for gradients through it.

    Raises PenstockError where ``out`` is one of the inputs, which would lose those that it had.
    """
    wanted = [each for each in inputs if each.requires_grad] if torch.is_grad_enabled() else []
    if not wanted:
        return out

    def guarded(tensor: torch.Tensor) -> Any:
        if hasattr(tensor, "numbers"):  # a view on a weight, which depends on nothing else
            return tensor
        if any(tensor is each for each in wanted):
            raise PenstockError(_REASON)
        return _NoGradients.apply(tensor, *wanted) if tensor.is_floating_point() else tensor  # type: ignore[no-untyped-call]

    return tree_map_only(torch.Tensor, guarded, out)
