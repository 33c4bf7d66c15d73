"""Keeps gradients from being lost without a word: what was computed on streamed weights has none."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...tiering.errors import PenstockError

REASON = "no gradients flow through streamed weights; compute under torch.no_grad(), or train with transformers itself"


class _NoGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(out)  # it stays the same tensor, which users may change in place
        return out

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise PenstockError(REASON)


def without_gradients(out: Any, inputs: Any, weights_want: Callable[[], bool]) -> Any:
    """``out``, which was computed on ``inputs`` and on weights, with an error for whoever asks for gradients through
    it where torch would give some: if one of ``inputs`` requires them, or if ``weights_want`` them.

    ``out`` and ``inputs`` are tensors, or dicts, lists and tuples of them. An input that is given back stays as it is.
    """
    if not torch.is_grad_enabled():
        return out
    given = [*_tensors_in(inputs)]
    wanted = [each for each in given if each.requires_grad]
    if not wanted:
        if not weights_want():
            return out
        wanted = [torch.empty(0, requires_grad=True)]

    def guard(tensor: torch.Tensor) -> torch.Tensor:
        if hasattr(tensor, "numbers"):  # a view on a weight, which depends on nothing else
            return tensor
        if tensor.requires_grad or not tensor.is_floating_point() or any(tensor is each for each in given):
            return tensor
        if tensor._is_view() or tensor.is_inference():  # which torch would not mark
            tensor = tensor.clone()
        return _NoGradients.apply(tensor, *wanted)  # type: ignore[no-any-return, no-untyped-call]

    return _map(guard, out)


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors_in(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors_in(each)


def _map(guard: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """``value`` with its tensors guarded, a dict in place."""
    if isinstance(value, torch.Tensor):
        return guard(value)
    if isinstance(value, dict):
        for key, each in [*value.items()]:
            value[key] = _map(guard, each)
    elif isinstance(value, tuple | list):
        made = [_map(guard, each) for each in value]
        return value._make(made) if hasattr(value, "_make") else type(value)(made)
    return value
