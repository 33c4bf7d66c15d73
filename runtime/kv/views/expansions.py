"""Finds the form of what an ``expand_kv`` of transformers makes. Nothing is computed, so no hook of a user runs."""

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .visible import Expand


class ExpansionForm:
    """The form of what ``expand``, the ``expand_kv`` of a module with multi-head latent attention, gives."""

    def __init__(self, expand: Expand) -> None:
        self._expand = expand
        self._known: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def like(self, latents: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one token, [1, H, 1, D], with one number of storage: of the heads, dimensions, dtype and
        device of those that ``expand`` makes of ``latents`` and ``rotated`` [B, h, T, d]."""
        kind = latents.device.type
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (cast, *((x.shape[1], x.shape[3], x.dtype, x.device) for x in (latents, rotated)))
        if key not in self._known:
            self._known[key] = self._find_form(latents, rotated)
        return self._known[key]

    def _find_form(self, latents: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        method: Any = self._expand
        with torch.inference_mode(False), torch.no_grad():
            with FakeTensorMode():
                token = [
                    torch.empty((1, x.shape[1], 1, x.shape[3]), dtype=x.dtype, device=x.device)
                    for x in (latents, rotated)
                ]
                keys, values = method.__func__(_hollow(method.__self__), *token)
            like = [torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape) for x in (keys, values)]
        return like[0], like[1]


def _hollow(module: nn.Module) -> nn.Module:
    """A module of the class of ``module`` that makes tensors of the same form out of fake ones: it has no numbers,
    no hooks, and the forwards of its classes."""
    made = type(module).__new__(type(module))
    state = {name: value for name, value in vars(module).items() if name != "forward"}
    state |= {name: type(value)() for name, value in state.items() if name.endswith("_hooks") and value is not None}
    for name in ("_parameters", "_buffers"):
        state[name] = {
            key: None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            for key, tensor in state[name].items()
        }
    state["_modules"] = {key: None if child is None else _hollow(child) for key, child in module._modules.items()}
    vars(made).update(state)
    return made
