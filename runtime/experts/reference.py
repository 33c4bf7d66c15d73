"""The reference way to compute experts: the module's own eager code, on stand-ins that lease one expert at a time."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ...kernels.process.interrupts import calls_others
from ...tiering.errors import UnplaceableModule
from .expert_blocks import ExpertBlocks
from .tier_experts import TierExperts


class ReferenceExperts:
    """Runs the eager code of ``module``, in any thread."""

    def __init__(
        self, module: torch.nn.Module, path: str, names: Mapping[str, int], blocks: ExpertBlocks, experts: TierExperts
    ) -> None:
        """``names`` of the stacked parameters of ``module``, which is at ``path``: each with its place among the
        tensors of an expert's block."""
        self._module, self._blocks, self._experts, self.names = module, blocks, experts, names
        self._bridge = experts.bridge
        self._local = threading.local()
        module._parameters = _ExpertParameters(module._parameters, path, self)

    @calls_others
    def run(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """``hidden`` [tokens, width], ``index`` and ``weights`` [tokens, top_k] -> [tokens, width]."""
        eager = type(self._module).forward.__wrapped__  # type: ignore[attr-defined]
        with self._one_at_a_time():
            return eager(self._module, hidden, index, weights)  # type: ignore[no-any-return]

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
        return _Stacked(self, self.names[name]) if hasattr(self._local, "expert") and name in self.names else None

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


class _Stacked:
    """Looks to the eager code like a parameter [experts, ...] of which single experts are taken."""

    def __init__(self, experts: ReferenceExperts, position: int) -> None:
        self._experts, self._position = experts, position

    def __getitem__(self, expert: Any) -> torch.Tensor:
        return self._experts.tensor(self._position, int(expert))


class _ExpertParameters(dict[str, Any]):
    """The module's parameters; the stacked ones cannot be taken as a whole, for they are never in memory as a whole."""

    def __init__(self, parameters: dict[str, Any], path: str, experts: ReferenceExperts) -> None:
        super().__init__(parameters)
        self._path, self._experts = path, experts

    def __getitem__(self, name: str) -> Any:
        stacked = self._experts.stacked(name)
        if stacked is not None:
            return stacked
        if name in self._experts.names:
            raise UnplaceableModule(
                f"{self._path}.{name} is used as a whole, but the experts of this module are streamed one by one; "
                "load the model with transformers instead"
            )
        return super().__getitem__(name)
