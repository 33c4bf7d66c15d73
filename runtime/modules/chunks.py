"""Computes token-wise modules with several weights (an MLP) over a long prompt in parts of rows, under one lease.

The tensors between the weights are wider than the input, and grow with the prompt; in parts they do not. No code per
architecture: a module qualifies by its own modules and its arguments. kernels/products/row_parts.py finds out whether
it computes every row by itself, with the same bits.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from ...kernels.process.interrupts import calls_others
from ...kernels.products.autocast import autocasts
from ...kernels.products.row_parts import ROWS, divide_rows, parts_keep_bits
from ..checkpoints.modules import is_experts

ModuleForward = Callable[..., Any]


def is_divisible(module: nn.Module) -> bool:
    """Whether ``module`` is made of several modules with weights and of nothing that a trial could miss: no experts, no
    buffers, and no code from elsewhere, which may change until the next run."""
    inside = [*module.modules()]
    if any(is_experts(each) or each._buffers for each in inside):
        return False
    if not all(map(is_library_code, inside)):
        return False
    return sum(any(weight is not None for weight in each._parameters.values()) for each in inside) > 1


def is_library_code(module: nn.Module) -> bool:
    """Whether the class of ``module`` is one of torch's or transformers'."""
    return type(module).__module__.partition(".")[0] in ("torch", "transformers")


def in_parts(
    module: nn.Module, original: ModuleForward, held: Callable[[], AbstractContextManager[bool]]
) -> ModuleForward:
    """A forward for ``module`` that calls ``original`` on parts of rows where that gives the same bits.

    ``held`` leases all weights of the module together. It gives False where they do not fit: then all rows go at once.
    """
    widths = {size for weight in module.parameters() for size in weight.shape}

    @functools.wraps(original)
    @calls_others
    def forward(*args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs or autocasts() or not _is_long(args[0]) or not _is_as_built(module):
            return original(*args, **kwargs)
        state: torch.Tensor = args[0]
        rows = state.view(*[1] * (state.dim() - 2), -1, state.shape[-1])
        with held() as leased:
            if leased and parts_keep_bits(original, lambda n: rows[..., :n, :], rows.shape[-2], _kind(module), widths):
                return _joined(original, rows).view(*state.shape[:-1], -1)
            return original(state)

    return forward


def _is_long(state: Any) -> bool:
    """Whether ``state`` is [.., rows, width] with rows for several parts."""
    if not isinstance(state, torch.Tensor) or not 2 <= state.dim() <= 3 or not state.is_contiguous():
        return False
    return state.numel() >= 2 * ROWS * state.shape[-1] > 0


def _is_as_built(module: nn.Module) -> bool:
    """Whether nothing in ``module`` must see all rows at once: no hooks, and no code from elsewhere, as in adapters."""
    inside = [each for each in module.modules() if each is not module]
    return all(is_library_code(each) and not (each._forward_hooks or each._forward_pre_hooks) for each in inside)


def _kind(module: nn.Module) -> str:
    """Names everything that the module's bits depend on: classes, shapes and settings, as torch prints them."""
    return f"{type(module).__module__}.{' '.join(repr(module).split())}"


@calls_others
def _joined(compute: ModuleForward, rows: torch.Tensor) -> torch.Tensor:
    """``compute`` of the parts of ``rows``, one after the other."""
    out: torch.Tensor | None = None
    for part in divide_rows(rows.shape[-2]):
        done = compute(rows[..., part, :])
        if out is None:
            out = done.new_empty((*rows.shape[:-1], done.shape[-1]))
        out[..., part, :] = done
    assert out is not None
    return out
