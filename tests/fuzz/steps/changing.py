"""Weights, attributes and modules that users change."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from penstock.tiering.errors import PenstockError

from ..fields import pick
from ..side import Side
from .step import Step


def _in_place(module: nn.Module, name: str, weight: Any) -> None:
    with torch.no_grad():
        weight.mul_(1.5)


def _data(module: nn.Module, name: str, weight: Any) -> None:
    weight.data.add_(0.125)


def _new_data(module: nn.Module, name: str, weight: Any) -> None:
    weight.data = torch.full_like(weight, 0.25)


def _copy(module: nn.Module, name: str, weight: Any) -> None:
    with torch.no_grad():
        weight.copy_(torch.linspace(-1, 1, weight.numel()).reshape(weight.shape))


def _new_parameter(module: nn.Module, name: str, weight: Any) -> None:
    setattr(module, name, nn.Parameter(torch.linspace(-1, 1, weight.numel()).reshape(weight.shape).to(weight.dtype)))


def _row(module: nn.Module, name: str, weight: Any) -> None:
    with torch.no_grad():
        weight[0] = 0.5


def _initialise(module: nn.Module, name: str, weight: Any) -> None:
    nn.init.normal_(weight, 0, 0.3)


def _through_detach(module: nn.Module, name: str, weight: Any) -> None:
    weight.detach().zero_()


def _registered(module: nn.Module, name: str, weight: Any) -> None:
    module.register_parameter(name, nn.Parameter(torch.ones(weight.shape, dtype=weight.dtype) / 8))


def _numpy(module: nn.Module, name: str, weight: Any) -> None:
    if weight.dtype != torch.bfloat16:
        array = weight.detach().numpy()
        if not array.flags.writeable:  # numpy itself would say so
            raise PenstockError("the array cannot be written to")
        array[:] *= 2


CHANGES: dict[str, Callable[[nn.Module, str, Any], None]] = {
    "in place": _in_place,
    "data": _data,
    "new data": _new_data,
    "copy": _copy,
    "new parameter": _new_parameter,
    "row": _row,
    "initialise": _initialise,
    "through detach": _through_detach,
    "registered": _registered,
    "numpy": _numpy,
}


@dataclass(frozen=True)
class ChangeWeight(Step):
    """One weight gets other numbers."""

    likelihood: ClassVar[int] = 8

    how: str = pick(*CHANGES)
    which: int = pick(1, 0, 3, 6, -1)

    def run(self, side: Side) -> Any:
        path = side.parameters()[self.which % len(side.parameters())][0]
        owner, _, name = path.rpartition(".")
        module = side.base.get_submodule(owner)
        CHANGES[self.how](module, name, getattr(module, name))


@dataclass(frozen=True)
class LoadSome(Step):
    """``load_state_dict`` of some weights."""

    likelihood: ClassVar[int] = 5

    which: int = pick(1, 0, 4, -1)
    assign: bool = pick(False, False, True)

    def run(self, side: Side) -> Any:
        name, weight = side.parameters()[self.which % len(side.parameters())]
        # Random: a matrix whose rows hardly vary gives differences of large sums, which are all rounding.
        new = (torch.randn(weight.shape, generator=torch.Generator().manual_seed(4)) * 0.1).to(weight.dtype)
        found = side.base.load_state_dict({name: new}, strict=False, assign=self.assign)
        return len(found.unexpected_keys)


@dataclass(frozen=True)
class ChangeAttribute(Step):
    """An attribute of modules that their forwards look at."""

    likelihood: ClassVar[int] = 5

    what: str = pick("scaling", "rotary", "norm", "top_k", "dropout", "training", "config")

    def run(self, side: Side) -> Any:
        modules = [module for _, module in side.base.named_modules()]
        if self.what == "scaling":
            for module in [m for m in modules if isinstance(getattr(m, "scaling", None), float)][:1]:
                module.scaling *= 1.5
        elif self.what == "rotary":
            for module in [m for m in modules if isinstance(getattr(m, "inv_freq", None), torch.Tensor)][:1]:
                module.inv_freq.mul_(0.5)
        elif self.what == "norm":
            for module in [m for m in modules if isinstance(getattr(m, "variance_epsilon", None), float)][:1]:
                module.variance_epsilon = 0.1
        elif self.what == "top_k":
            for module in [m for m in modules if isinstance(getattr(m, "top_k", None), int)][:1]:
                module.top_k = 1
        elif self.what == "dropout":
            for module in [m for m in modules if isinstance(m, nn.Dropout)][:1]:
                module.p = 0.5
        elif self.what == "training":
            side.base.train(not side.base.training)
        else:
            side.base.generation_config.eos_token_id = 17


@dataclass(frozen=True)
class Implementation(Step):
    """Another attention of transformers'."""

    likelihood: ClassVar[int] = 2

    which: str = pick("sdpa", "eager")

    def run(self, side: Side) -> Any:
        side.base.set_attn_implementation(self.which)


@dataclass(frozen=True)
class Replace(Step):
    """A module is replaced, or its forward patched."""

    likelihood: ClassVar[int] = 5

    what: str = pick("forward", "output layer", "wrapped", "identity", "method", "prune", "parametrise", "quantise")
    which: int = pick(0, 2, 5)

    def run(self, side: Side) -> Any:
        linear = side.modules(nn.Linear)
        if not linear:
            return None
        path, module = linear[self.which % len(linear)]
        owner, _, name = path.rpartition(".")
        parent = side.base.get_submodule(owner)
        _REPLACEMENTS[self.what](side, parent, name, module)
        return None


class _Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs) * 1.25


class _Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 2


def _patch(side: Side, parent: nn.Module, name: str, module: Any) -> None:
    original = module.forward
    module.forward = lambda *args, **kwargs: original(*args, **kwargs) * 1.1


def _output_layer(side: Side, parent: nn.Module, name: str, module: Any) -> None:
    head = side.base.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return
    made = nn.Linear(head.in_features, head.out_features, bias=False, dtype=side.base.dtype)
    with torch.no_grad():
        made.weight.copy_(torch.linspace(-1, 1, made.weight.numel()).reshape(made.weight.shape))
    side.base.set_output_embeddings(made)


def _wrap(side: Side, parent: nn.Module, name: str, module: Any) -> None:
    setattr(parent, name, _Wrapped(module))


def _identity(side: Side, parent: nn.Module, name: str, module: Any) -> None:
    made = nn.Linear(module.in_features, module.out_features, bias=False, dtype=side.base.dtype)
    nn.init.constant_(made.weight, 1 / 64)
    setattr(parent, name, made)


def _method(side: Side, parent: nn.Module, name: str, module: Any) -> None:
    layers = side.layers()
    if layers:
        original = layers[0].forward
        layers[0].forward = lambda states, *args, **kwargs: original(states * 1.1, *args, **kwargs)


def _prune(side: Side, parent: nn.Module, name: str, module: Any) -> None:
    from torch.nn.utils import prune

    prune.l1_unstructured(module, "weight", amount=0.5)


def _parametrise(side: Side, parent: nn.Module, name: str, module: Any) -> None:
    from torch.nn.utils import parametrize

    parametrize.register_parametrization(module, "weight", _Doubled())


def _quantise(side: Side, parent: nn.Module, name: str, module: Any) -> None:
    rounded = (module.weight.detach().float() * 16).round() / 16
    made = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, dtype=side.base.dtype)
    with torch.no_grad():
        made.weight.copy_(rounded)
        if module.bias is not None:
            made.bias.copy_(module.bias)
    setattr(parent, name, made)


_REPLACEMENTS: dict[str, Callable[[Side, nn.Module, str, Any], None]] = {
    "forward": _patch,
    "output layer": _output_layer,
    "wrapped": _wrap,
    "identity": _identity,
    "method": _method,
    "prune": _prune,
    "parametrise": _parametrise,
    "quantise": _quantise,
}
