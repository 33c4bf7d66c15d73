"""Linear layers on a few rows: one pass over the weight, with the same bits as torch.

streamed.py leases the weights that these layers find.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ...kernels.products.autocast import autocasts, is_cast
from ...kernels.products.few_rows import MOST_ROWS, find_product, rounds_once
from ...kernels.products.row_order import ROW_ORDER
from ...kernels.weights.packed_weight import PackedWeight, addmm, linear
from .plainly import nobody_watches

LinearForward = Callable[[torch.Tensor], torch.Tensor]
OnWeights = Callable[[torch.Tensor, Mapping[str, nn.Parameter]], torch.Tensor | None]
"""A module's forward by these of its parameters. None where only the forward itself computes."""

_TORCHS = functional.linear, torch.addmm
"""What layers multiply with, if nobody has set another function."""
_LOSSY_ROWS = 32
"""Rows that products of lossy formats take in one call. They give each row the bits that it has alone."""


def _addmm_packed(input: torch.Tensor, weight: PackedWeight, bias: Any) -> torch.Tensor:
    """Compute as Conv1D, which always has a bias."""
    return addmm(bias, input.view(-1, input.shape[-1]), weight).view(*input.shape[:-1], weight.shape[1])


class _Kind(NamedTuple):
    """What layers of one class compute."""

    forward: Callable[..., Any]
    """The class's own, if nobody has set another one."""
    turned: bool
    """Whether a weight lies as [k, n]."""
    packed: Callable[[torch.Tensor, PackedWeight, torch.Tensor | None], torch.Tensor]


_KINDS: dict[type[nn.Module], _Kind] = {
    nn.Linear: _Kind(nn.Linear.forward, False, linear),
    Conv1D: _Kind(Conv1D.forward, True, _addmm_packed),
}


def few_rows(module: nn.Module, original: LinearForward) -> LinearForward | None:
    """A forward for ``module`` that uses the product for a few rows where there is one, and ``original`` otherwise.
    Returns None where there never is one."""
    layer: Any = module
    if not has_few_rows(module) or "forward" in vars(module):
        return None
    made = type(module)
    kind = _KINDS[made]

    def forward(input: torch.Tensor) -> torch.Tensor:
        alone = ROW_ORDER.alone and len(input) > 1
        if not _is_as_made(layer, made, kind, input):
            return _each_alone(original, input) if alone else original(input)
        parameters = layer._parameters
        try:
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # somebody computes one from others, as parametrisations do, or keeps it elsewhere
            return _each_alone(original, input) if alone else original(input)
        if alone:
            return _rows_alone(kind, input, weight, bias, original)
        out = _multiply(kind, input, weight, bias)
        return original(input) if out is None else out

    return forward


def _is_as_made(layer: nn.Module, made: type[nn.Module], kind: _Kind, input: torch.Tensor) -> bool:
    """Whether ``layer`` computes with ``input`` what layers of the class that it was ``made`` of do."""
    if type(layer) is not made or made.forward is not kind.forward:
        return False
    if functional.linear is not _TORCHS[0] or torch.addmm is not _TORCHS[1] or torch._C._len_torch_function_stack():
        return False
    return type(input) in _PLAIN and (not kind.turned or input.is_contiguous())


def few_rows_on(module: nn.Module) -> OnWeights | None:
    """The forward of ``few_rows`` for weights that are given. None where there never is one."""
    layer: Any = module
    if not has_few_rows(module) or "forward" in vars(module):
        return None
    made = type(module)
    kind = _KINDS[made]

    def compute(input: torch.Tensor, weights: Mapping[str, nn.Parameter]) -> torch.Tensor | None:
        weight = weights.get("weight")
        if weight is None or ROW_ORDER.alone or not _is_as_made(layer, made, kind, input):
            return None
        parameters = layer._parameters
        if "weight" not in parameters or "bias" not in parameters:
            return None
        return _multiply(kind, input, weight, weights["bias"] if "bias" in weights else parameters["bias"])

    return compute


def _multiply(kind: _Kind, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
    """Multiply all of ``input`` at once. None where only torch does."""
    if kind.turned and bias is None:
        return None
    if isinstance(weight, PackedWeight):
        return kind.packed(input, weight, bias)
    return _product(input, weight, bias, turned=kind.turned)


def has_few_rows(module: nn.Module) -> bool:
    """Return whether ``few_rows`` may give ``module`` a forward of its own."""
    layer: Any = module
    return type(module) in _KINDS and layer.weight.dtype == torch.bfloat16


def _rows_alone(
    kind: _Kind, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, original: LinearForward
) -> torch.Tensor:
    """Multiply each of ``input`` [rows, 1, k] as if it were alone."""
    if kind.turned and bias is None:
        return _each_alone(original, input)
    if isinstance(weight, PackedWeight):
        rows = MOST_ROWS if weight.format.exact else _LOSSY_ROWS
        return torch.cat([kind.packed(part, weight, bias) for part in torch.split(input, rows)])
    outs: list[torch.Tensor] = []
    for part in torch.split(input, MOST_ROWS):
        out = _product(part, weight, bias, turned=kind.turned)
        outs += [out] if out is not None else map(original, torch.split(part, 1))
    return torch.cat(outs)


def _each_alone(original: LinearForward, input: torch.Tensor) -> torch.Tensor:
    return torch.cat([*map(original, torch.split(input, 1))])


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


_PLAIN = (torch.Tensor, nn.Parameter)
"""Inputs that torch multiplies itself."""
_ADDRESSED = (nn.Parameter, _FastWeight)
"""Parameters whose numbers lie at their address."""


def _product(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, turned: bool = False
) -> torch.Tensor | None:
    """``functional.linear(input, weight, bias)`` by a product for a few rows; None where there is none.

    ``turned``: by a weight that lies as [k, n], as ``torch.addmm`` of all rows.
    """
    if type(weight) not in _ADDRESSED or type(input) not in _PLAIN or not (input.is_cpu and weight.is_cpu):
        return None
    if not nobody_watches() or (autocasts() and is_cast(input)):
        return None
    if input.dtype != torch.bfloat16 or weight.dtype != torch.bfloat16 or weight.dim() != 2:
        return None
    k, n = weight.shape if turned else reversed(weight.shape)
    rows = input.numel() // k
    if rows > MOST_ROWS or input.shape[-1] != k:
        return None
    # torch does not fold a batch into rows, and sums in another order, if neither holds.
    if not weight.is_contiguous():
        return None
    if not (weight.requires_grad or input.is_contiguous()):
        return None
    if bias is not None and not rounds_once(input.view(-1, k) if turned else input, bias, n):
        return None
    product = find_product(rows, n, k, weight, biased=bias is not None, turned=turned)
    return None if product is None else product.of(input.contiguous(), weight, bias)
