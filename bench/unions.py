"""Watches the routers: which experts does each step need at least once? It does not rely on counters of penstock."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from penstock.runtime.checkpoints.modules import is_experts
from penstock.tiering.units import BlockId


class Unions:
    """The different experts of each step. A step begins with those that are ``resident`` then."""

    def __init__(self) -> None:
        self._steps: list[tuple[Collection[BlockId], list[tuple[str, int, torch.Tensor]]]] = []

    def step(self, resident: Collection[BlockId]) -> None:
        """Begin a step."""
        self._steps.append((resident, []))

    def saw(self, name: str, experts: int, index: torch.Tensor) -> None:
        """Note the experts that a module was called with."""
        self._steps[-1][1].append((name, experts, index))

    # Counted afterwards: while the clock runs, only references are kept.

    @property
    def count(self) -> int:
        """Experts needed, summed over the steps."""
        return sum(len(needed) for _, needed in self._sets())

    @property
    def absent(self) -> int:
        """Those of them that were not resident when their step began."""
        return sum(len(needed.difference(resident)) for resident, needed in self._sets())

    def _sets(self) -> Iterator[tuple[Collection[BlockId], set[BlockId]]]:
        for resident, calls in self._steps:
            yield (
                resident,
                {
                    BlockId("expert", name, expert)
                    for name, experts, index in calls
                    for expert in {*index.flatten().tolist()}
                    if expert < experts
                },
            )


@contextmanager
def watch_experts(model: nn.Module) -> Iterator[Unions]:
    """Watch every experts module of ``model`` meanwhile."""
    unions = Unions()

    def watch(name: str, module: nn.Module) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            unions.saw(name, int(module.num_experts), args[1] if len(args) > 1 else kwargs["top_k_index"])

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    handles = [watch(name, module) for name, module in model.named_modules() if is_experts(module)]
    try:
        yield unions
    finally:
        for handle in handles:
            handle.remove()
