"""The reference way to compute experts: the module's own eager code, on stand-ins that lease one expert at a time."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ...kernels.process.interrupts import calls_others
from ..tiers.stored_parameters import StoredParameters
from .expert_blocks import ExpertBlocks
from .stacked_weight import StackedNumbers
from .tier_experts import ExpertMemory, TierExperts


class ReferenceExperts:
    """Runs the eager code of ``module``, in any thread."""

    def __init__(
        self,
        module: Any,
        path: str,
        names: Mapping[str, int],
        blocks: ExpertBlocks,
        experts: TierExperts,
        memory: ExpertMemory,
    ) -> None:
        """``names`` of the stacked parameters of ``module``, which is at ``path``: each with its place among the
        tensors of an expert's block. ``experts`` lie in ``memory``."""
        self._module, self._blocks, self._experts, self._names = module, blocks, experts, names
        self._bridge = experts.bridge
        self._local = threading.local()
        stacked = {
            name: StackedNumbers(f"{path}.{name}", place, blocks.ids, experts, memory, module._parameters[name])
            for name, place in names.items()
            if name in module._parameters
        }
        self._parameters = _ExpertParameters(module._parameters, stacked, self)
        module._parameters = self._parameters
        for name, numbers in stacked.items():
            numbers.lives_in(self._parameters, name)

    @property
    def replaced(self) -> bool:
        """Whether somebody put other weights in the place of those in the bundle, or changed them."""
        return self._parameters.replaced

    @calls_others
    def run(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """``hidden`` [tokens, width], ``index`` and ``weights`` [tokens, top_k] -> [tokens, width]."""
        with self._one_at_a_time():
            return eager_experts(self._module, hidden, index, weights)

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """In here, indexing the module's stacked weights leases that expert and releases the one before."""
        self._local.expert, self._local.leased, self._local.tensors = None, [], ()
        try:
            yield
        finally:
            if self._local.leased:
                self._bridge.release(*self._local.leased)
            del self._local.expert, self._local.leased, self._local.tensors

    def stacked(self, name: str) -> "_Stacked | None":
        """The stand-in for the stacked parameter ``name`` while the module's eager code runs in this thread."""
        return _Stacked(self, self._names[name]) if hasattr(self._local, "expert") else None

    def tensor(self, position: int, expert: int) -> torch.Tensor:
        """Tensor number ``position`` of ``expert``, leased."""
        local = self._local
        if local.expert != expert:
            if local.leased:
                self._bridge.release(*local.leased)
                local.leased = []
            local.tensors, local.leased = self._experts.lease_one(self._blocks.ids[expert])
            local.expert = expert
        return local.tensors[position]  # type: ignore[no-any-return]


@calls_others
def eager_experts(
    module: torch.nn.Module, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The experts ``module`` by its own eager code, with the weights that it has."""
    return type(module).forward.__wrapped__(module, hidden, index, weights)  # type: ignore[attr-defined, no-any-return]


class _Stacked:
    """Looks to the eager code like a parameter [experts, ...] of which single experts are taken."""

    def __init__(self, experts: ReferenceExperts, position: int) -> None:
        self._experts, self._position = experts, position

    def __getitem__(self, expert: Any) -> torch.Tensor:
        return self._experts.tensor(self._position, int(expert))


class _ExpertParameters(StoredParameters):
    """The module's parameters. To its eager code the stacked ones look like a stack of which one expert is there."""

    def __init__(
        self, parameters: dict[str, Any], stacked: Mapping[str, StackedNumbers], experts: ReferenceExperts
    ) -> None:
        super().__init__(parameters, {name: numbers.weight for name, numbers in stacked.items()})
        self._experts = experts
        self.replaced = False
        """Whether one of them is no longer as it is stored."""

    def __getitem__(self, name: str) -> Any:
        held = super().__getitem__(name)
        if held is self.stored.get(name, self) and (stacked := self._experts.stacked(name)) is not None:
            return stacked
        return held

    def note_change(self) -> None:
        """See StoredParameters."""
        self.replaced = not all(map(self.is_stored, self.stored))
