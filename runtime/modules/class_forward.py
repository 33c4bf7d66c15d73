"""The forward that a module takes from its class, looked up at each call: somebody may replace it after loading."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn


def own_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward of ``module``: what was put on it, else whatever its class has when it is called."""
    if "forward" in vars(module):
        return module.forward

    @functools.wraps(module.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return type(module).forward(module, *args, **kwargs)

    return forward
