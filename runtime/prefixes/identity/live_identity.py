"""The identity of a loaded model as it is now: adapters, hooks, attributes, changed weights, settings of torch."""

import hashlib
import sys
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configs import describe_config
from .functions import describe_function, is_function, is_library
from .modules import describe_modules, find_parameters
from .rope import find_bound
from .settings import describe_settings
from .tensors import TensorDigests
from .unknown import Undescribed

_HELPERS = ("torch.nn.functional", "transformers.masking_utils", "transformers.integrations.sdpa_attention")
"""Python modules whose functions forwards call, besides those that define modules."""


@dataclass(frozen=True, slots=True)
class Described:
    """What keys and values depend on, for JSON. Prompts of ``bound`` tokens or more depend on their length, too; None:
    there is no bound."""

    identity: Mapping[str, object]
    bound: int | None = None


class FixedIdentity:
    """The identity of a model that nobody changes."""

    follows = False
    """Whether it tells when the model has changed."""

    def __init__(self, identity: Mapping[str, object], model: nn.Module | None = None) -> None:
        self._described = Described(identity)
        self.model = model
        """The model, where it is known."""

    def describe(self) -> Described:
        """The identity."""
        return self._described


class LiveIdentity:
    """The identity of ``model``, which is installed: of its weights, ``base``, and of all that has been changed since.

    The weights that it has when this is made are those that ``base`` names.
    """

    follows = True

    def __init__(self, model: nn.Module, base: Mapping[str, object], device: torch.device) -> None:
        self._model, self._base, self._device = weakref.ref(model), base, device
        self._tensors = TensorDigests()
        for path, module in model.named_modules():
            for name, tensor, streamed in find_parameters(module):
                self._tensors.note(module, name, f"{path}.{name}", None if streamed else tensor)

    @property
    def model(self) -> nn.Module | None:
        """The model, while it is there."""
        return self._model()

    def describe(self) -> Described:
        """The identity of the model for the calling thread. Raises Undescribed, which says what cannot be known."""
        model = self._model()
        if model is None:
            raise Undescribed("the model is gone")
        configs: dict[int, str] = {}

        def describe_once(config: Any) -> str:
            if id(config) not in configs:
                configs[id(config)] = _describe_config(config)
            return configs[id(config)]

        lines = sorted({*describe_modules(model, self._tensors, describe_once), *_describe_helpers(model)})
        state = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        bounds = [bound for module in model.modules() if (bound := find_bound(module)) is not None]
        identity = {**self._base, "settings": describe_settings(self._device), "state": state}
        return Described(identity, min(bounds, default=None))


def _describe_helpers(model: nn.Module) -> Iterator[str]:
    """Yield a line for each function that forwards may call by its name in a Python module. Raises Undescribed."""
    bases = {base for kind in {type(module) for module in model.modules()} for base in kind.__mro__}
    for name in sorted({base.__module__ for base in bases} | {*_HELPERS}):
        for attribute, value in [*vars(sys.modules.get(name)).items()] if name in sys.modules else []:
            if is_function(value) and not isinstance(value, type):
                yield f"{name}.{attribute} {describe_function(value)}"
    for place in (torch, torch.Tensor):
        for attribute, value in [*vars(place).items()]:
            if isinstance(value, FunctionType) and not is_library(value.__module__):
                yield f"{place.__name__}.{attribute} {describe_function(value)}"


def _describe_config(config: Any) -> str:
    """A configuration, and the attention that it chooses. Raises Undescribed."""
    chosen = config._attn_implementation
    functions = [
        describe_function(registry[chosen])
        for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)
        if chosen in registry
    ]
    return f"{chosen} {functions} {getattr(config, '_experts_implementation', None)} {describe_config(config)}"
