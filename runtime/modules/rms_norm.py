"""Norms by the root mean square of a few rows: one call, with the bits of the module's own forward.

No code per architecture: a module qualifies if it has a weight, an epsilon and nothing else, and a trial finds the norm
that its class computes.
"""

from collections.abc import Callable, Hashable, Sequence
from operator import is_
from typing import Any

import torch
from torch import nn

from ...kernels.modules.rms_norm import MOST, RMSNorm, find_rms_norm
from ...kernels.products.autocast import autocasts
from .chunks import is_library_code
from .plainly import nobody_watches

NormForward = Callable[..., torch.Tensor]

_EPSILONS = ("variance_epsilon", "eps")
_FOUND: dict[Hashable, RMSNorm | None] = {}
"""By class, the forward of the class, width, dtype and the module's own attributes, as its epsilon."""


def _operations() -> tuple[object, ...]:
    """The operations that norms are made of, as they are now."""
    kind = torch.Tensor
    return torch.rsqrt, torch.mean, torch.pow, kind.pow, kind.mean, kind.to, kind.float, kind.type_as, kind.__mul__


_TORCHS = _operations()


def rms_norm(module: nn.Module, original: NormForward) -> NormForward | None:
    """A forward for ``module`` that takes one call where that has the bits of its class, and ``original`` otherwise.
    Returns None where it is no such norm."""
    eps = next((name for name in _EPSILONS if isinstance(vars(module).get(name), float)), None)
    alone = [*module._parameters] == ["weight"] and not module._buffers and not module._modules
    if not alone or eps is None or not is_library_code(module) or "forward" in vars(module):
        return None
    weight: Any = module._parameters["weight"]
    if weight is None or weight.dim() != 1 or weight.dtype not in (torch.bfloat16, torch.float32):
        return None
    kind = type(module)
    width, dtype, tried = weight.shape[0], weight.dtype, kind.forward
    settings = sorted(vars(module).keys() - vars(nn.Module()).keys())  # which somebody may change
    found: tuple[list[Any], RMSNorm | None] = [object()], None  # for the settings of the last time

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        if len(args) != 1 or kwargs:
            return original(*args, **kwargs)
        state, weight = args[0], module._parameters.get("weight")
        if type(state) is not torch.Tensor or type(weight) is not nn.Parameter or type(module).forward is not tried:
            return original(state)
        if state.dtype != dtype or weight.dtype != dtype or state.shape[-1] != width or state.numel() >= MOST:
            return original(state)
        if not (state.is_contiguous() and state.is_cpu and weight.is_cpu) or autocasts():
            return original(state)
        if not nobody_watches() or _operations() != _TORCHS:  # somebody computes in another way
            return original(state)
        if torch.is_grad_enabled() and (state.requires_grad or weight.requires_grad):
            return original(state)
        own = vars(module)
        given = [own.get(name) for name in settings]
        nonlocal found
        if len(given) != len(found[0]) or not all(map(is_, given, found[0])):
            found = given, _norm_with(module, given, (kind, tried, width, dtype), own.get(eps))
        norm = found[1]
        return original(state) if norm is None else norm(state, weight)

    return forward


def _norm_with(module: nn.Module, given: Sequence[object], kind: tuple[Any, ...], eps: object) -> RMSNorm | None:
    """The norm of ``module`` with the settings ``given``, ``kind`` besides. None if none has its bits."""
    if not all(isinstance(each, Hashable) for each in given):
        return None
    key = *kind, *given
    if key not in _FOUND:
        *_, width, dtype = kind
        _FOUND[key] = find_rms_norm(_computation(module), width, dtype, eps) if isinstance(eps, float) else None
    return _FOUND[key]


def _computation(module: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The forward of the class of ``module``, with any weight."""
    kind = type(module)
    like: Any = kind.__new__(kind)

    def compute(state: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        plain = {name: value for name, value in vars(module).items() if name != "forward"}
        vars(like).update(plain | {"_parameters": {"weight": nn.Parameter(weight, requires_grad=False)}})
        out: torch.Tensor = kind.forward(like, state)
        return out

    return compute
