"""Describe a model, the second stage of packing: its modules, their tensors, and the blocks that these form.

Only names, shapes and dtypes count. Nothing is read, and the model may be on the meta device.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from ...tiering.errors import UnplaceableModule
from .layout import Layout, ModuleTensors, lay_out
from .modules import is_experts, is_unit, layer_of, stacked_names


@dataclass(frozen=True, slots=True)
class Description:
    """A ``model`` on the meta device (or in memory, if it is built already), and the ``layout`` of its blocks.

    Experts are in the order of their numbers. ``dtype`` is the one that weights were asked for in. ``addresses`` are
    those of weights, as far as they are known before anything is read. ``marks`` say what else decides the content of a
    bundle.
    """

    model: PreTrainedModel
    layout: Layout
    dtype: torch.dtype
    addresses: Mapping[str, int] = field(default_factory=dict)
    marks: tuple[str, ...] = ()


def describe(
    model: nn.Module, addresses: Mapping[str, int] | None = None, order: Mapping[str, Sequence[int]] | None = None
) -> Layout:
    """The layout of ``model``, with ``addresses`` and ``order`` as for ``lay_out``.

    Raises UnplaceableModule for a module whose state is not made of tensors.
    """
    tensors, tied = _unique_tensors(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    described = [_describe_module(path, own, modules) for path, own in _group_by_module(tensors)]
    return lay_out(described, tied, addresses or {}, order or {})


def _unique_tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The state dict without repetitions, and which name stands for each name left out."""
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            raise UnplaceableModule(
                f"{name} is a {type(tensor).__name__}, not a tensor: penstock cannot stream this model"
            )
        # By object, not by address: on the meta device there is none.
        known = first.setdefault(id(tensor), name)
        if known == name:
            tensors[name] = tensor.detach()
        else:
            tied[name] = known
    return tensors, tied


def _group_by_module(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Module paths and their own tensors by full name, in state-dict order."""
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(name.rpartition(".")[0], {})[name] = tensor
    yield from groups.items()


def _describe_module(path: str, own: Mapping[str, torch.Tensor], modules: Mapping[str, nn.Module]) -> ModuleTensors:
    module = modules[path]
    entries = tuple(
        (name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.nbytes)
        for name, tensor in own.items()
    )
    return ModuleTensors(
        path,
        layer_of(path, modules) or path,
        entries,
        frozenset(name for name in own if name.rpartition(".")[2] in module._buffers),
        stacked_names(module, own),
        int(module.num_experts) if is_experts(module) else 0,  # type: ignore[arg-type]
        is_unit(module),
    )
