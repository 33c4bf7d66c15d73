"""Copies of single modules of a model: plain ones, without the forward that belongs to the module of the model.

A copy with that forward would compute the original. The weights of a deep copy, and of one that was pickled, lie in
memory. A shallow copy shares its weights with the original, as those of torch's modules do.
"""

import copy
import copyreg
from functools import partial
from typing import Any

from torch import nn

_OURS = ("forward", "__deepcopy__", "__reduce_ex__", "_penstock_experts")


def copy_plainly(module: nn.Module) -> None:
    """Have ``copy`` and ``pickle`` make plain modules of ``module``."""
    vars(module)["__deepcopy__"] = partial(_copy_deeply, module)
    vars(module)["__reduce_ex__"] = partial(_reduce, module)


def _copy_deeply(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    made = type(module).__new__(type(module))
    memo[id(module)] = made
    state = _plain_state(module) | {"_parameters": dict(module._parameters.items())}
    vars(made).update(copy.deepcopy(state, memo))
    return made


def _reduce(module: nn.Module, protocol: object) -> Any:
    return copyreg.__newobj__, (type(module),), _plain_state(module)  # type: ignore[attr-defined]


def _plain_state(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OURS}
