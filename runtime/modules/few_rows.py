"""Linear layers on a few rows: one pass over the weight, with the same bits as torch.

streamed.py leases the weights that these layers find.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ...kernels.products.autocast import autocasts, is_cast
from ...kernels.products.few_rows import MOST_ROWS, find_product, rounds_once
from ...kernels.products.row_order import ROW_ORDER
from ...kernels.weights.packed_weight import PackedWeight, linear

LinearForward = Callable[[torch.Tensor], torch.Tensor]
OnWeights = Callable[[torch.Tensor, Mapping[str, nn.Parameter]], torch.Tensor | None]
"""A module's forward by these of its parameters. None where only the forward itself computes."""

_TORCHS_FORWARD = nn.Linear.forward
_LOSSY_ROWS = 32
"""Rows that products of lossy formats take in one call. They give each row the bits that it has alone."""


def few_rows(module: nn.Module, original: LinearForward) -> LinearForward | None:
    """A forward for ``module`` that uses the product for a few rows where there is one, and ``original`` otherwise.
    Returns None where there never is one."""
    layer: Any = module
    if not has_few_rows(module):
        return None

    def forward(input: torch.Tensor) -> torch.Tensor:
        if nn.Linear.forward is not _TORCHS_FORWARD:  # somebody computes all of them in another way
            return original(input)
        parameters = layer._parameters
        try:
            weight = parameters["weight"]
        except KeyError:  # somebody computes it from others, as parametrisations do
            return original(input)
        bias = parameters.get("bias")
        if ROW_ORDER.alone and len(input) > 1:
            return _rows_alone(input, weight, bias, original)
        if isinstance(weight, PackedWeight):
            return linear(input, weight, bias)
        out = _product(input, weight, bias)
        return original(input) if out is None else out

    return forward


def few_rows_on(module: nn.Module) -> OnWeights | None:
    """The forward of ``few_rows`` for weights that are given. None where there never is one."""
    layer: Any = module
    if not has_few_rows(module):
        return None

    def compute(input: torch.Tensor, weights: Mapping[str, nn.Parameter]) -> torch.Tensor | None:
        weight = weights.get("weight")
        if weight is None or nn.Linear.forward is not _TORCHS_FORWARD or ROW_ORDER.alone:
            return None
        bias = weights["bias"] if "bias" in weights else layer._parameters.get("bias")
        if isinstance(weight, PackedWeight):
            return linear(input, weight, bias)
        return _product(input, weight, bias)

    return compute


def has_few_rows(module: nn.Module) -> bool:
    """Return whether ``few_rows`` may give ``module`` a forward of its own."""
    layer: Any = module
    return type(module) is nn.Linear and layer.weight.dtype == torch.bfloat16


def _rows_alone(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, original: LinearForward
) -> torch.Tensor:
    """Multiply each of ``input`` [rows, 1, k] as if it were alone."""
    if isinstance(weight, PackedWeight):
        rows = MOST_ROWS if weight.format.exact else _LOSSY_ROWS
        return torch.cat([linear(part, weight, bias) for part in torch.split(input, rows)])
    outs: list[torch.Tensor] = []
    for part in torch.split(input, MOST_ROWS):
        out = _product(part, weight, bias)
        outs += [out] if out is not None else map(original, torch.split(part, 1))
    return torch.cat(outs)


def fast_weight(tensor: torch.Tensor, requires_grad: bool) -> nn.Parameter:
    """``tensor`` as a parameter. ``functional.linear`` by it uses the product for a few rows where there is one.

    For modules that call that function themselves, as routers do.
    """
    if tensor.dim() == 2 and tensor.dtype == torch.bfloat16:
        return _FastWeight(tensor, requires_grad)
    return nn.Parameter(tensor, requires_grad)


class _FastWeight(nn.Parameter):
    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is functional.linear and len(args) in (2, 3) and not kwargs:
                out = _product(*args)
                if out is not None:
                    return out
            return func(*args, **(kwargs or {}))


_ADDRESSED = (nn.Parameter, _FastWeight)
"""Parameters whose numbers lie at their address."""


def _product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
    """``functional.linear(input, weight, bias)`` by a product for a few rows; None where there is none."""
    if type(weight) not in _ADDRESSED or (autocasts() and is_cast(input)):
        return None
    if input.dtype != torch.bfloat16 or weight.dtype != torch.bfloat16 or weight.dim() != 2:
        return None
    n, k = weight.shape
    rows = input.numel() // k
    if rows > MOST_ROWS or input.shape[-1] != k:
        return None
    # torch does not fold a batch into rows, and sums in another order, if neither holds.
    if not weight.is_contiguous():
        return None
    if not (weight.requires_grad or input.is_contiguous()):
        return None
    if bias is not None and not rounds_once(input, bias, n):
        return None
    product = find_product(rows, n, k, weight, biased=bias is not None)
    if product is None:
        return None
    return product.of(input.contiguous(), weight, bias)
