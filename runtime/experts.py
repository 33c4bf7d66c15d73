"""Experts through transformers' experts interface: computed in order of arrival, summed in transformers' order.

Two ways lead to the same bits. The lean one computes each expert the moment it is in memory and keeps its output apart;
the outputs are then added up in ascending order of the experts, as the eager code does. The plain one runs the module's
own eager code, whose stacked weights are replaced by stand-ins that lease one expert at a time. On its first call every
kind of experts module is run both ways: if a single bit differs, that kind is run the plain way from then on.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ..kernels.experts import expert_product
from ..tiering.errors import UnplaceableModule
from ..tiering.events import Slot
from ..tiering.store.manifest import Block
from .bridge import Bridge
from .views import SlotViews

IMPLEMENTATION = "penstock"
"""The name under which transformers knows our experts function."""

_ATTRIBUTE = "_penstock_experts"
_FIRST_ROW = torch.zeros(1, dtype=torch.long)
_PICKS = torch.split(torch.arange(64), 1)
_FEW = 64
"""Router choices up to which grouping in Python beats tensor operations."""


class StreamedExperts:
    """The experts of one module: which blocks they are and how to compute on them."""

    def __init__(
        self,
        module: torch.nn.Module,
        path: str,
        blocks: Sequence[Block],
        bridge: Bridge,
        views: Sequence[SlotViews],
        trust: "Trust",
    ) -> None:
        """``blocks`` in ascending order of the experts, and for each one the views on its tensors."""
        self._module, self._bridge, self._views, self._trust = module, bridge, views, trust
        self._blocks = [block.id for block in blocks]
        self._names = {spec.name.removeprefix(f"{path}."): n for n, spec in enumerate(blocks[0].tensors)}
        first = "gate_up_proj" if module.has_gate else "up_proj"
        self._order = [self._names.get(name) for name in (first, f"{first}_bias", "down_proj", "down_proj_bias")]
        # Older transformers have no such experts, and no such attribute.
        self._post: Any = module.post_expert_norm if getattr(module, "has_post_expert_norm", False) else None
        self._plain = threading.local()
        module._parameters = _ExpertParameters(module._parameters, path, self)
        setattr(module, _ATTRIBUTE, self)

    # --- the two ways -----------------------------------------------------------------------------------------------

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """``hidden`` [tokens, width], ``index`` and ``weights`` [tokens, top_k] -> [tokens, width]."""
        if None in (self._order[0], self._order[2]):
            return self._eager(hidden, index, weights)
        trusted = self._trust.get(self._module)
        if trusted is False:
            return self._eager(hidden, index, weights)
        out = self._lean(hidden, index, weights)
        if trusted is None:
            plain = self._eager(hidden, index, weights)
            self._trust.set(self._module, torch.equal(out, plain))
            return plain
        return out

    def _lean(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        module = self._module
        groups = _group(index, len(self._blocks))
        outs: dict[int, torch.Tensor] = {}
        ascending = list(groups)
        final = torch.zeros_like(hidden)
        added = 0
        with closing(self._bridge.acquire([self._blocks[expert] for expert in ascending])) as arriving:
            for block, slot in arriving:
                rows, picks = groups[block.part]
                up, up_bias, down, down_bias = self._tensors(block.part, slot)
                out = expert_product(
                    hidden[rows],
                    up,
                    up_bias,
                    down,
                    down_bias,
                    transposed=module.is_transposed,  # type: ignore[arg-type]
                    activation=module._apply_gate if module.has_gate else module.act_fn,  # type: ignore[arg-type]
                    post=self._post,
                )
                self._bridge.release(block)
                outs[block.part] = (out * weights[rows, picks, None]).to(final.dtype)
                while added < len(ascending) and ascending[added] in outs:
                    expert = ascending[added]
                    final.index_add_(0, groups[expert][0], outs.pop(expert))
                    added += 1
        return final

    def _eager(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        eager = type(self._module).forward.__wrapped__  # type: ignore[attr-defined]
        with self._one_at_a_time():
            return eager(self._module, hidden, index, weights)  # type: ignore[no-any-return]

    # --- weights ----------------------------------------------------------------------------------------------------

    def _tensors(self, expert: int, slot: Slot) -> list[Any]:
        tensors = self._views[expert][slot]
        return [None if position is None else tensors[position] for position in self._order]

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """In here, indexing the module's stacked weights leases that expert and releases the one before."""
        self._plain.expert, self._plain.block, self._plain.tensors = None, None, ()
        try:
            yield
        finally:
            if self._plain.block is not None:
                self._bridge.release(self._plain.block)
            del self._plain.expert

    def stacked(self, name: str) -> "_Stacked | None":
        """The stand-in for the stacked parameter ``name`` while the module's eager code runs in this thread."""
        return _Stacked(self, self._names[name]) if hasattr(self._plain, "expert") and name in self._names else None

    def slice(self, position: int, expert: int) -> torch.Tensor:
        """Tensor number ``position`` of ``expert``, leased."""
        local = self._plain
        if local.expert != expert:
            if local.block is not None:
                self._bridge.release(local.block)
                local.block = None
            ((block, slot),) = self._bridge.acquire([self._blocks[expert]])
            local.expert, local.block, local.tensors = expert, block, self._views[expert][slot]
        return local.tensors[position]  # type: ignore[no-any-return]


class Trust:
    """Which kinds of experts module the lean way computes bit for bit. One per loaded model."""

    def __init__(self) -> None:
        self._known: dict[type, bool] = {}

    def get(self, module: torch.nn.Module) -> bool | None:
        return self._known.get(type(module))

    def set(self, module: torch.nn.Module, equal: bool) -> None:
        self._known[type(module)] = self._known.get(type(module), True) and equal


class _Stacked:
    """Looks to the eager code like a parameter [experts, ...] of which single experts are taken."""

    def __init__(self, experts: StreamedExperts, position: int) -> None:
        self._experts, self._position = experts, position

    def __getitem__(self, expert: Any) -> torch.Tensor:
        return self._experts.slice(self._position, int(expert))


class _ExpertParameters(dict[str, Any]):
    """The module's parameters; the stacked ones cannot be taken as a whole, for they are never in memory as a whole."""

    def __init__(self, parameters: dict[str, Any], path: str, experts: StreamedExperts) -> None:
        super().__init__(parameters)
        self._path, self._experts = path, experts

    def __getitem__(self, name: str) -> Any:
        stacked = self._experts.stacked(name)
        if stacked is not None:
            return stacked
        if name in self._experts._names:
            raise UnplaceableModule(
                f"{self._path}.{name} is used as a whole, but the experts of this module are streamed one by one; "
                "load the model with transformers instead"
            )
        return super().__getitem__(name)


def _group(index: torch.Tensor, experts: int) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Expert -> (token rows, positions among the top k), experts ascending, rows in the order eager code takes them.

    ``index`` is [tokens, top_k]; entries >= ``experts`` mean "no expert" and are left out.
    """
    tokens, top_k = index.shape
    if tokens == 1 and top_k <= len(_PICKS):
        chosen = sorted((expert, pick) for pick, expert in enumerate(index[0].tolist()) if expert < experts)
        return {expert: (_FIRST_ROW, _PICKS[pick]) for expert, pick in chosen}
    if tokens * top_k <= _FEW:
        grouped: dict[int, tuple[list[int], list[int]]] = {}
        picked = index.tolist()
        for pick in range(top_k):
            for row in range(tokens):
                rows, picks = grouped.setdefault(picked[row][pick], ([], []))
                rows.append(row)
                picks.append(pick)
        return {
            expert: (torch.tensor(grouped[expert][0]), torch.tensor(grouped[expert][1]))
            for expert in sorted(grouped)
            if expert < experts
        }
    flat = index.t().reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=experts + 1).tolist()
    parts = torch.split(order, counts)
    return {expert: (parts[expert] % tokens, parts[expert] // tokens) for expert in range(experts) if counts[expert]}


def _experts_forward(
    module: torch.nn.Module, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    experts: StreamedExperts = getattr(module, _ATTRIBUTE)
    return experts.forward(hidden, top_k_index, top_k_weights)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts_forward)
