"""Describes adapters of PEFT by what they compute: the active ones, in their order, whatever their names. A layer
without active ones computes what its base layer computes, and is described like it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from .values import Values

BASE = "base_layer"
_NAMES_ONLY = frozenset({"_active_adapter", "_disable_adapters", "merged_adapters", "training"})


def is_adapted(module: Any) -> bool:
    """Whether ``module`` is a layer of PEFT around a base layer."""
    return BASE in getattr(module, "_modules", ()) and hasattr(module, "adapter_layer_names")


def active_parts(
    module: Any, values: Values, describe: Callable[[str, nn.Module], Iterable[str]], skipped: frozenset[str]
) -> Iterator[str]:
    """Yield what the active adapters of ``module`` add to its base layer; nothing if none is active. ``describe`` gives
    lines for a module inside, under a name; attributes in ``skipped`` are torch's. Raises Undescribed."""
    every = {name for part in module.adapter_layer_names for name in getattr(module, part, ())}
    merged = [*module.merged_adapters]
    active = [] if module.disable_adapters else [name for name in module.active_adapters if name in every]
    if merged:
        yield f"merged {merged} {active}"
        active = sorted(every)
    if not active:
        return
    for name, value in {**vars(module), **module._modules}.items():
        if name in skipped or name in _NAMES_ONLY or name == BASE:
            continue
        if _is_by_adapter(module, name, value, every):
            for place, adapter in enumerate(active):
                if adapter in value:
                    yield from _describe_part(f"{name}.{place}", value[adapter], module, values, describe)
        else:
            yield from _describe_part(name, value, module, values, describe)


def _is_by_adapter(module: Any, name: str, value: Any, every: set[str]) -> bool:
    """Whether the attribute ``name`` of ``module`` has an entry for each adapter."""
    if not isinstance(value, Mapping | nn.ModuleDict | nn.ParameterDict):
        return False
    return name in (*module.adapter_layer_names, *module.other_param_names) or {*value} <= every


def _describe_part(
    name: str, value: Any, owner: nn.Module, values: Values, describe: Callable[[str, nn.Module], Iterable[str]]
) -> Iterator[str]:
    if isinstance(value, nn.Module):
        for path, module in value.named_modules(prefix=name):
            yield from describe(path, module)
    else:
        yield f"{name}={values.describe(value, owner)}"
