"""Describes the modules of a model: classes, hooks, attributes, parameters and buffers, as they are now."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from .adapters import active_parts, is_adapted
from .functions import describe_class, peel
from .rope import is_volatile
from .tensors import TensorDigests
from .unknown import Undescribed
from .values import Values

_TORCHS = frozenset(vars(nn.Module())) | {"_compiled_call_impl", "_is_hf_initialized"}
"""Attributes that torch gives every module."""
_WITHOUT_EFFECT = frozenset({"penstock", "__deepcopy__",
                             "__reduce_ex__", "generation_config", "warnings_issued", "name_or_path", "peft_config",
                             "_hf_peft_config_loaded", "_tp_plan", "_ep_plan", "_pp_plan", "_tp_size", "_ep_size",
                             "_no_split_modules", "_keep_in_fp32_modules", "_is_stateful", "_dtype_plan",
                             "_skip_keys_device_placement", "all_tied_weights_keys", "_auto_class", "_device_mesh",
                             "_can_set_attn_implementation_cached_value",
                             "_output_capturing_hooks_installed", "_loss_function"})  # fmt: skip
"""Attributes of transformers' models that no forward of a prompt looks at."""
_SKIPPED = _TORCHS | _WITHOUT_EFFECT
_WATCHERS = ("penstock.", "transformers.utils.output_capturing")
"""Where hooks come from that change nothing."""

Kinds = dict[type, None]


def describe_modules(model: nn.Module, tensors: TensorDigests, describe_config: Callable[[Any], str]) -> Iterator[str]:
    """Yield lines that describe ``model``, in any order. Raises Undescribed."""
    _check_hooks("every module", vars(torch_module)["_global_forward_hooks"])
    _check_hooks("every module", vars(torch_module)["_global_forward_pre_hooks"])
    named = dict(model.named_modules())
    values = Values(tensors, {id(module): path for path, module in named.items()}, describe_config)
    kinds: Kinds = {}
    inner: set[str] = set()  # the modules of adapters, which are described with the layer that has them
    for path, module in named.items():
        try:
            _check_hooks("it", module._forward_hooks)
            _check_hooks("it", module._forward_pre_hooks)
            describe_class(type(module))
            if path in inner or path.rpartition(".")[0] in inner:
                inner.add(path)
                continue
            if is_adapted(module):
                inner |= {f"{path}.{name}" for name in module._modules if name != "base_layer"}
            yield from _describe(path.replace(".base_layer", ""), module, values, kinds)
        except Undescribed as problem:
            raise Undescribed(f"{path or 'the model'}: {problem}") from None
    yield from (f"{kind.__module__}.{kind.__qualname__} {describe_class(kind)}" for kind in kinds)


def _describe(path: str, module: nn.Module, values: Values, kinds: Kinds) -> Iterator[str]:
    if is_adapted(module):
        parts = [*active_parts(module, values, partial(_describe, values=values, kinds=kinds), _SKIPPED)]
        if parts:
            kinds[type(module)] = None
        yield from (f"{path} {part}" for part in parts)
        return
    kinds[type(module)] = None
    if module.training and not _is_deterministic(module):
        raise Undescribed("it is in training mode")
    yield f"{path} {type(module).__qualname__}"
    yield from _describe_tensors(path, module, values)
    for name, value in vars(module).items():
        if name in _SKIPPED or is_volatile(module, name):
            continue
        if text := _describe_attribute(module, name, value, values):
            yield f"{path}.{name}={text}"


def find_parameters(module: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Yield the name of each parameter of ``module``, the parameter, and whether its numbers are streamed."""
    stored = getattr(module._parameters, "stored", {})
    for name, tensor in module._parameters.items():  # not those that a thread has leased
        if tensor is not None:
            yield name, tensor, tensor is stored.get(name)


def _describe_tensors(path: str, module: nn.Module, values: Values) -> Iterator[str]:
    for name, tensor, streamed in find_parameters(module):
        # Whether a weight requires gradients is part of the bits: torch multiplies by one that does in another way.
        text = values.describe_parameter(module, name, tensor, streamed=streamed)
        yield f"{path}.{name}={text} {tensor.requires_grad}"
    for name, buffer in module._buffers.items():
        if buffer is not None and not is_volatile(module, name):
            yield f"{path}.{name}={values.describe(buffer)}"


def _describe_attribute(module: nn.Module, name: str, value: Any, values: Values) -> str:
    if callable(value) and not isinstance(value, nn.Module | type):
        inner = peel(value)
        if getattr(inner, "__self__", None) is module and inner.__func__ is getattr(type(module), name, None):
            return ""  # the method of its class, with what penstock has put around it
        return values.describe(inner, module)
    return values.describe(value, module)


def _check_hooks(of: str, hooks: dict[int, Any]) -> None:
    for hook in hooks.values():
        inner = getattr(hook, "__func__", hook)
        module = str(getattr(inner, "__globals__", {}).get("__name__", type(inner).__module__))
        if not module.startswith(_WATCHERS):
            raise Undescribed(f"{of} has a hook, {getattr(inner, '__qualname__', type(inner).__qualname__)}")


def _is_deterministic(module: nn.Module) -> bool:
    """Whether ``module`` computes the same in training mode."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return not module.p
    library = type(module).__module__.partition(".")[0] in ("torch", "peft")
    return library and not isinstance(module, nn.modules.batchnorm._BatchNorm)
