"""Copies of single modules of a model: plain ones, whose weights lie in memory.

A module here has a forward of its own, which belongs to the model. A copy of it would compute the original.
"""

import copy
from functools import partial
from typing import Any

from torch import nn

from ...tiering.errors import PenstockError

_OURS = ("forward", "__deepcopy__", "__reduce_ex__", "_parameters", "_penstock_experts")


def copy_plainly(module: nn.Module) -> None:
    """Have ``copy.deepcopy`` of ``module`` make a plain module, and refuse to pickle it."""
    vars(module)["__deepcopy__"] = partial(_plain_copy, module)
    vars(module)["__reduce_ex__"] = partial(_refuse, type(module).__name__)


def _plain_copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    made = type(module).__new__(type(module))
    memo[id(module)] = made
    others = {name: value for name, value in vars(module).items() if name not in _OURS}
    weights = dict(module._parameters.items())
    vars(made).update(copy.deepcopy(others, memo))
    vars(made)["_parameters"] = copy.deepcopy(weights, memo)
    return made


def _refuse(name: str, *_: Any) -> Any:
    raise PenstockError(
        f"this {name} computes with weights that are streamed from flash, and cannot be pickled; pickle a "
        "copy.deepcopy of it, or load the model again where you need it"
    )
