"""Count what is built while a model is: more modules and weights than its files justify are refused as they come."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ...tiering.errors import CheckpointError
from .files.bounds import Bounds
from .modules import is_experts


@contextmanager
def counted(bounds: Bounds, name: str) -> Iterator[None]:
    """While the model ``name`` is built by this thread: CheckpointError beyond ``bounds.parts``."""
    owner, parts = threading.get_ident(), 0

    def count(module: nn.Module, own: str, registered: Any) -> None:
        nonlocal parts
        if threading.get_ident() == owner:
            parts += 1
            if parts > bounds.parts:
                raise CheckpointError(
                    f"the configuration of {name} asks for more than {bounds.parts} modules and weights, and "
                    f"{bounds.held}; the weights do not belong to this config.json"
                )

    hooks = [register_module_module_registration_hook(count), register_module_parameter_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_experts(model: nn.Module, bounds: Bounds, name: str) -> None:
    """Raise CheckpointError for more experts than ``bounds`` allow, since each becomes a block; and for a router that
    chooses more than there are."""
    experts = sum(int(getattr(module, "num_experts", 0)) for module in model.modules() if is_experts(module))
    if experts > bounds.experts:
        raise CheckpointError(
            f"the configuration of {name} asks for {experts} experts, and {bounds.held}; the weights do not belong to "
            "this config.json"
        )
    for module in model.modules():
        chosen, there = getattr(module, "top_k", None), getattr(module, "num_experts", None)
        if type(chosen) is int and type(there) is int and not 1 <= chosen <= there:
            raise CheckpointError(
                f"the configuration of {name} asks for {chosen} experts for each token, and there are {there}; "
                "fetch it again"
            )
