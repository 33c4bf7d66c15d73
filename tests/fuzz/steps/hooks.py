"""Hooks of users on modules."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..fields import pick
from ..outcome.choices import PerToken, noted_choices
from ..side import Side
from .step import Step


def _first(out: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(out, torch.Tensor):
        return change(out)
    if isinstance(out, tuple) and out and isinstance(out[0], torch.Tensor):
        return (change(out[0]), *out[1:])
    return out


def _weight(module: Any) -> torch.Tensor | None:
    return next((each for each in module.parameters()), None)


def _scale(module: Any, args: Any, out: Any) -> Any:
    return _first(out, lambda states: states * 1.2)


def _steer(module: Any, args: Any, out: Any) -> Any:
    return _first(out, lambda states: states + torch.linspace(-0.3, 0.3, states.shape[-1]).to(states.dtype))


def _by_weight(module: Any, args: Any, out: Any) -> Any:
    weight = _weight(module)
    return out if weight is None else _first(out, lambda states: states * (1 + weight.float().abs().mean().to(states)))


def _in_place(module: Any, args: Any, out: Any) -> Any:
    return _first(out, lambda states: states.mul_(0.9))


HOOKS = {"scale": _scale, "steer": _steer, "by weight": _by_weight, "in place": _in_place}


@dataclass(frozen=True)
class Hook(Step):
    """A hook that stays, and changes what a module gives."""

    likelihood: ClassVar[int] = 7

    where: str = pick("layer", "linear", "embedding", "model", "norm")
    which: int = pick(0, 1, -1)
    kind: str = pick("scale", "steer", "by weight", "in place", "before")

    def run(self, side: Side) -> Any:
        found = self._modules(side)
        if not found:
            return
        module = found[self.which % len(found)]
        if self.kind == "before":
            side.hooks.append(module.register_forward_pre_hook(lambda module, args: _before(args)))
        else:
            side.hooks.append(module.register_forward_hook(HOOKS[self.kind]))

    def _modules(self, side: Side) -> list[Any]:
        if self.where == "layer":
            return side.layers()
        if self.where == "model":
            return [side.base.base_model]
        if self.where == "norm":
            return [module for name, module in side.base.named_modules() if "norm" in name.rpartition(".")[2]]
        return [module for _, module in side.modules(nn.Linear if self.where == "linear" else nn.Embedding)]


def _before(args: Any) -> Any:
    if args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point():
        return (args[0] * 2, *args[1:])
    return None


@dataclass(frozen=True)
class Unhook(Step):
    """All hooks go."""

    def run(self, side: Side) -> Any:
        while side.hooks:
            side.hooks.pop().remove()


@dataclass(frozen=True)
class Record(Step):
    """What every module gave in one forward, and a number of its weights while it ran."""

    likelihood: ClassVar[int] = 5

    weights: bool = pick(True, False)
    everywhere: bool = pick(False, True)

    def run(self, side: Side) -> Any:
        found: list[torch.Tensor] = []

        def record(module: nn.Module, args: Any, out: Any) -> None:
            _first(out, lambda states: (found.append(states.detach().clone()), states)[1])
            if self.weights and not isinstance(module, nn.Embedding):
                found.extend(p.detach().float().sum() for p in module.parameters(recurse=False))

        kinds = nn.Module if self.everywhere else (nn.Linear, nn.Embedding)
        # In experts' own modules, the order is that in which the experts arrive.
        modules = [module for name, module in side.modules(kinds) if "experts" not in name]
        handles = [module.register_forward_hook(record) for module in modules]
        try:
            with torch.no_grad(), noted_choices(1, 6, wanted=side.rounded) as close:
                side.model(**side.inputs(1, 6))
        finally:
            for handle in handles:
                handle.remove()
        return PerToken(found, close)
