"""Questions about the modules of a transformers model: which hold experts, and in which layer each lies."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

_PRODUCTS = (nn.Linear, nn.Embedding, Conv1D)


def is_experts(module: nn.Module) -> bool:
    """Whether transformers' experts interface computes ``module``: its weights are stacked, one slice per expert."""
    names = ("num_experts", "is_transposed", "has_bias", "has_gate", "_apply_gate")
    return all(hasattr(module, name) for name in names)


def layer_of(path: str, modules: Mapping[str, nn.Module]) -> str | None:
    """The element of the outermost list that ``path`` lies in, "model.layers.3". None outside of lists."""
    parts = path.split(".")
    for depth in range(1, len(parts)):
        if isinstance(modules.get(".".join(parts[:depth])), nn.ModuleList):
            return ".".join(parts[: depth + 1])
    return None


def stacked_names(module: nn.Module, own: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """Full names of the parameters of ``module``, among its ``own`` tensors, that hold one slice per expert."""
    if not is_experts(module):
        return frozenset()
    parameters = dict(module.named_parameters(recurse=False))
    return frozenset(
        name
        for name, tensor in own.items()
        if name.rpartition(".")[2] in parameters and tensor.dim() > 0 and tensor.shape[0] == module.num_experts
    )


def is_unit(module: nn.Module) -> bool:
    """Whether ``module`` is computed as one: nothing below it holds weights. Activation functions hold none.

    Not a convolution: in language models these are small, and fast paths reach for their weights without calling them.
    """
    return not isinstance(module, nn.modules.conv._ConvNd) and not any(
        child.state_dict(keep_vars=True) for child in module.children()
    )


def is_product(module: nn.Module, name: str, dtype: torch.dtype) -> bool:
    """Whether ``module`` does nothing with its weight ``name``, of ``dtype``, but multiply by it or take rows of it."""
    if not dtype.is_floating_point:
        return False
    return is_experts(module) or (type(module) in _PRODUCTS and name.rpartition(".")[2] == "weight")


def is_transposed(module: nn.Module) -> bool:
    """Whether rows of the matrices of ``module``, which are of products, are its inputs."""
    return isinstance(module, Conv1D) or (is_experts(module) and bool(module.is_transposed))


def positional_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of arguments by position; those of the overridden forward where ``forward`` takes ``*args``."""
    owner = getattr(forward, "__self__", None)
    classes = () if owner is None else type(owner).__mro__
    overridden = [vars(each)["forward"].__get__(owner) for each in classes if "forward" in vars(each)]
    for candidate in (forward, *overridden):
        parameters = inspect.signature(candidate).parameters.values()
        names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
        if names:
            return names
    return ()
