"""Calibrate with a text: which inputs of a matrix are large, how much each module and expert adds.

The text goes through the model as it is streamed, within its budget; hooks add up squares, and keep nothing else.
Inputs weigh errors as in "AWQ: Activation-aware Weight Quantization"; experts count by the squares of their routers'
weights.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ...kernels.experts.experts import Expert, Recipe, compute_inner
from ...tiering.units import BlockId
from ..checkpoints.modules import is_experts, layer_of
from ..experts.experts import streamed_experts
from ..packing.arrange.formats import Key
from ..packing.arrange.shares import expert_share
from ..packing.measure.calibration import Calibration

_USUAL = 16
"""Tokens with all inputs alike that are added to those seen: an expert may have seen few."""
_PREDICTED = 64
"""Tokens of a window for which the output layer is computed."""


def digest_windows(windows: Sequence[Sequence[int]]) -> str:
    """SHA-256 of the tokens of a calibration text."""
    return hashlib.sha256(json.dumps(windows).encode()).hexdigest()


def calibrate(
    model: Any, windows: Sequence[Sequence[int]], *, advance: Callable[[int], None] = lambda tokens: None
) -> Calibration:
    """Run ``windows`` through ``model``, a streamed one whose weights are as they are. ``advance`` is told how many
    tokens are done."""
    kept = "logits_to_keep" in inspect.signature(model.forward).parameters
    options = {"logits_to_keep": _PREDICTED} if kept else {}
    sums = _Sums(model)
    try:
        with torch.no_grad():
            for window in windows:
                model(torch.tensor([window], device=model.device), use_cache=False, **options)
                advance(len(window))
    finally:
        sums.stop()
    return sums.calibration()


class _Sums:
    """Adds up what goes through a model from the moment it is made until ``stop``."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._inputs: dict[Key, tuple[torch.Tensor, int]] = {}
        self._uses: dict[str, torch.Tensor] = {}
        self._energies: dict[str, torch.Tensor] = {}
        self._branches: dict[str, tuple[float, int]] = {}
        self._hooks: list[Any] = []
        for path, module in self._modules.items():
            if isinstance(module, nn.Linear | Conv1D):
                self._watch_inputs(path, module)
            elif is_experts(module):
                self._watch_experts(path, module)
            if path and path == layer_of(path, self._modules):
                self._watch_layer(path, module)

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for module in self._modules.values():
            if (experts := streamed_experts(module)) is not None:
                experts.observe(None)

    def calibration(self) -> Calibration:
        importance = {}
        for key, (total, count) in self._inputs.items():
            usual = total.mean() / count
            importance[key] = (total + _USUAL * usual) / (count + _USUAL)
        return Calibration(importance, dict(self._shares()))

    def _shares(self) -> Any:
        """Of each module or expert in a layer, with its block."""
        for path, module in self._modules.items():
            around = next((branch for branch in self._branches if f"{path}.".startswith(f"{branch}.")), None)
            if around is None:
                continue
            ratio, tokens = self._branches[around]
            uses = self._uses.get(path)
            if uses is not None:
                for expert in range(len(uses)):
                    yield BlockId("expert", path, expert), ratio / tokens * expert_share(uses, expert)
            elif module._parameters:
                yield BlockId("dense", path), ratio / tokens

    def _watch_inputs(self, path: str, module: nn.Module) -> None:
        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._add(f"{path}.weight", args[0])

        self._hooks.append(module.register_forward_pre_hook(see))

    def _watch_experts(self, path: str, module: Any) -> None:
        first = "gate_up_proj" if module.has_gate else "up_proj"
        count = int(module.num_experts)

        def see(_: nn.Module, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> None:
            self._add(f"{path}.{first}", hidden)
            none = count  # a number from there on means that no expert was chosen
            used = torch.zeros(count + 1, dtype=torch.float64)
            index, weights = top_k_index.flatten().cpu(), top_k_weights.flatten().cpu()
            used.index_add_(0, index.clamp(max=none), weights.double().square())
            self._uses[path] = self._uses.get(path, 0) + used[:-1]

        def seen(expert: int, state: torch.Tensor, weights: Expert, recipe: Recipe) -> None:
            self._add((f"{path}.down_proj", expert), compute_inner(state, weights, recipe))

        self._hooks.append(
            module.register_forward_pre_hook(lambda _, args, kwargs: see(_, *args, **kwargs), with_kwargs=True)
        )
        experts = streamed_experts(module)
        assert experts is not None
        experts.observe(seen)

    def _watch_layer(self, path: str, module: nn.Module) -> None:
        """How large what the layer's modules give is, compared with what the layer gives."""
        for name, child in module.named_children():

            def see(_: nn.Module, __: Any, output: Any, branch: str = f"{path}.{name}") -> None:
                out = output[0] if isinstance(output, tuple) else output
                if isinstance(out, torch.Tensor):
                    self._energies[branch] = out

            self._hooks.append(child.register_forward_hook(see))

        def compare(_: nn.Module, __: Any, output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            whole = _squares(out)
            for branch, part in self._energies.items():
                if part.shape == out.shape:
                    ratio, tokens = self._branches.get(branch, (0.0, 0))
                    found = (_squares(part) / whole.clamp(min=1e-30)).sum().item()
                    self._branches[branch] = ratio + found, tokens + len(whole)
            self._energies.clear()

        self._hooks.append(module.register_forward_hook(compare))

    def _add(self, key: Key, inputs: torch.Tensor) -> None:
        rows = inputs.flatten(0, -2)
        squares = rows.float().square().sum(0).cpu()  # a device's memory is for weights
        total, count = self._inputs.get(key, (0.0, 0))
        self._inputs[key] = total + squares, count + len(rows)


def _squares(states: torch.Tensor) -> torch.Tensor:
    """[tokens] of [.., width]: squared lengths."""
    return states.flatten(0, -2).float().square().sum(-1)
