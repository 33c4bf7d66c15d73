"""Describes the attributes of modules."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from .functions import describe_function, is_function, is_library, is_ours
from .tensors import TensorDigests
from .unknown import Undescribed

_SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, range, slice)
_DEEPEST = 6


class Values:
    """Describes values that modules of one model hold. One is made for each description of a model."""

    def __init__(self, tensors: TensorDigests, paths: Mapping[int, str], describe_config: Callable[[Any], str]) -> None:
        """``paths`` of the model's modules, by their ids."""
        self._tensors, self._paths, self._describe_config = tensors, paths, describe_config

    def describe(self, value: Any, owner: object = None, depth: int = 0) -> str:
        """``value``, an attribute of ``owner``. Raises Undescribed."""
        if isinstance(value, _SIMPLE):
            return f"{value!r}"
        if depth > _DEEPEST:
            raise Undescribed(f"a {type(value).__name__} too deep inside of others")
        if isinstance(value, torch.Tensor):
            return self._tensors.describe(value)
        if isinstance(value, nn.Module):
            return self._describe_module(value)
        if isinstance(value, enum.Enum):
            return f"{type(value).__qualname__}.{value.name}"
        if isinstance(value, PreTrainedConfig):
            return self._describe_config(value)
        if is_function(value):
            return describe_function(value, owner=owner)
        return self._describe_several(value, owner, depth + 1)

    def describe_parameter(self, module: nn.Module, name: str, tensor: torch.Tensor, *, streamed: bool) -> str:
        """As TensorDigests does it."""
        return self._tensors.describe_parameter(module, name, tensor, streamed=streamed)

    def _describe_module(self, module: nn.Module) -> str:
        if id(module) not in self._paths:
            raise Undescribed(f"a {type(module).__name__} beside the model's modules")
        return f"@{self._paths[id(module)]}"

    def _describe_several(self, value: Any, owner: object, depth: int) -> str:
        if isinstance(value, Mapping):
            pairs = [f"{self.describe(k, owner, depth)}:{self.describe(v, owner, depth)}" for k, v in value.items()]
            return "{" + ",".join(pairs) + "}"
        if isinstance(value, list | tuple):
            return "[" + ",".join(self.describe(each, owner, depth) for each in value) + "]"
        if isinstance(value, set | frozenset):
            return "{" + ",".join(sorted(self.describe(each, owner, depth) for each in value)) + "}"
        kind = type(value)
        if is_ours(kind.__module__):  # it computes what the module's own code does
            return ""
        if not is_library(kind.__module__):
            raise Undescribed(f"an object of {kind.__module__}.{kind.__qualname__}")
        names = [field.name for field in fields(value)] if is_dataclass(value) else [*getattr(value, "__dict__", ())]
        own = {name: getattr(value, name) for name in names}
        return f"{kind.__module__}.{kind.__qualname__}{self.describe(own, owner, depth)}"
