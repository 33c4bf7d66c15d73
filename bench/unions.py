"""Which experts a step needs at least once, whoever needs them: read off the routers, not off penstock's counters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from penstock.runtime.layout import is_experts


class Unions:
    """``count`` is the sum over all calls of the experts modules of the different experts chosen in that call."""

    def __init__(self) -> None:
        self._chosen: list[tuple[torch.Tensor, int]] = []

    def saw(self, module: Any, index: torch.Tensor) -> None:
        self._chosen.append((index, int(module.num_experts)))

    @property
    def count(self) -> int:
        # Counted afterwards: while the clock runs, only a reference is kept.
        return sum(int((index.unique() < experts).sum()) for index, experts in self._chosen)


@contextmanager
def watched(model: nn.Module) -> Iterator[Unions]:
    """Watch every experts module of ``model`` meanwhile."""
    unions = Unions()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        unions.saw(module, args[1] if len(args) > 1 else kwargs["top_k_index"])

    handles = [
        module.register_forward_pre_hook(hook, with_kwargs=True) for module in model.modules() if is_experts(module)
    ]
    try:
        yield unions
    finally:
        for handle in handles:
            handle.remove()
