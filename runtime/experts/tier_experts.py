"""The experts of one module in one tier of memory: leased there, seen as tensors, computed where they lie."""

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

import torch

from ...kernels.experts.experts import Expert, Recipe, compute_expert, compute_outputs
from ...kernels.experts.grouped_cuda import group_experts
from ...kernels.process.interrupts import calls_others
from ...kernels.weights.packed_weight import PackedWeight
from ...tiering.events import Slot
from ...tiering.store.bundle.manifest import Block
from ...tiering.units import BlockId
from ..tiers.bridge import Bridge
from ..tiers.compute_tier import ComputeTier
from ..tiers.device.misses import Misses
from ..tiers.kept_copies import KeptCopies
from ..tiers.leases import Leases
from ..tiers.plane_counts import PlaneCounts
from ..tiers.views import AllViews
from .expert_groups import Groups
from .expert_sum import Output


@dataclass(frozen=True, slots=True)
class ExpertMemory:
    """Where the experts of a model are computed."""

    tier: ComputeTier
    planes: PlaneCounts
    """Counts the bit planes that are computed with."""
    copies: KeptCopies
    """Counts weights that were changed."""
    grouped: bool = False
    """Whether experts may be computed together, in sums of another order."""
    misses: Misses | None = None
    """Decides which experts the CPU computes that are not on the device, if it may."""


class OnSlot(NamedTuple):
    """An expert in its slots: its tensors in the order of the block, the Expert made of them, its bit planes."""

    tensors: tuple[torch.Tensor, ...]
    expert: Expert
    planes: int


class Arrived(NamedTuple):
    """Experts that are in memory, with their numbers, and the blocks that are leased for them."""

    experts: list[tuple[int, Expert]]
    leased: list[BlockId]


class _Fixed(threading.local):
    """Per thread: the only residuals to compute with; None: all that are in memory."""

    planes: Collection[BlockId] | None = None


def on_slot(tensors: tuple[torch.Tensor, ...], order: Sequence[int | None]) -> OnSlot:
    """The expert made of a block's ``tensors``. ``order`` has the position of each of an Expert's tensors, or None."""
    ordered: list[Any] = [None if position is None else tensors[position] for position in order]
    planes = max(len(tensor.planes) if isinstance(tensor, PackedWeight) else 1 for tensor in tensors)
    return OnSlot(tensors, Expert(*ordered), planes)


class TierExperts:
    """The experts of one module behind one bridge."""

    def __init__(
        self,
        stacks: Sequence[Sequence[Block]],
        order: Sequence[int | None],
        recipe: Recipe,
        bridge: Bridge,
        views: AllViews,
        planes: PlaneCounts,
        *,
        native: bool,
        grouped: bool = False,
    ) -> None:
        """``stacks`` by number: for each expert its block, and those with further bit planes of it. ``order`` as for
        ``on_slot``. ``views`` are on the memory behind ``bridge``. ``planes`` counts the planes that are computed with.
        ``native``: the CPU computes, so our own products may. ``grouped``: experts may be computed together, in sums of
        another order."""
        self.bridge, self.recipe, self.native, self._grouped = bridge, recipe, native, grouped
        self._planes = planes
        self._residuals = [[block.id for block in stack[1:]] for stack in stacks]
        self._views = [
            views.of(
                [block.tensors for block in stack], lambda tensors: on_slot(tensors, order), kind=("expert", *order)
            )
            for stack in stacks
        ]
        self._fixed = _Fixed()

    @contextmanager
    def same_planes(self, experts: Collection[int]) -> Iterator[None]:
        """In here, the calling thread computes ``experts`` with the planes that are in memory now, and no others."""
        residuals = [block for expert in experts for block in self._residuals[expert]]
        held = self.bridge.acquire_present(residuals) if residuals else {}
        self._fixed.planes = held.keys()
        try:
            yield
        finally:
            self._fixed.planes = None
            if held:
                self.bridge.release(*held)

    def view(self, arrived: Sequence[tuple[BlockId, Slot]], leases: Leases) -> Arrived:
        """The experts of ``leases`` that have ``arrived``, as they are to be computed with."""
        views = [self._view(block, slot, leases.residual_slots(block)) for block, slot in arrived]
        self._planes.add([view.planes for view in views])
        experts = [(block.part, view.expert) for (block, _), view in zip(arrived, views, strict=True)]
        return Arrived(experts, leases.leased([block for block, _ in arrived]))

    def lease_one(self, block: BlockId) -> tuple[tuple[torch.Tensor, ...], list[BlockId]]:
        """Lease ``block``. Returns its tensors, and the blocks to give back."""
        leases = self.bridge.acquire([block])
        ((_, slot),) = leases
        view = self._view(block, slot, leases.residual_slots(block))
        self._planes.add([view.planes])
        return view.tensors, leases.leased([block])

    @calls_others
    def outputs(self, experts: Sequence[tuple[int, Expert]], groups: Groups, hidden: torch.Tensor) -> Iterator[Output]:
        """The outputs of ``experts``, leased, by number, for ``hidden`` [tokens, width], one expert after the other."""
        numbers, found = [number for number, _ in experts], [expert for _, expert in experts]
        if self.native:
            rows = [groups[number][0] for number in numbers]
            for at, part, out in compute_outputs(hidden, rows, found, self.recipe):
                yield numbers[at], part, out
            return
        states = [hidden[groups[number][0]] for number in numbers]
        outs = group_experts(states, found, self.recipe) if self._grouped else None
        for at, (number, expert) in enumerate(experts):
            yield number, slice(None), compute_expert(states[at], expert, self.recipe) if outs is None else outs[at]

    def _view(self, block: BlockId, slot: Slot, residual_slots: Sequence[Slot]) -> OnSlot:
        """The expert ``block``, with its residuals in ``residual_slots``, of which this thread may leave some out."""
        fixed = self._fixed.planes
        if fixed is not None:
            taken = takewhile(
                lambda pair: pair[0] in fixed, zip(self._residuals[block.part], residual_slots, strict=False)
            )
            residual_slots = [slot for _, slot in taken]
        return self._views[block.part].on(slot, *residual_slots)
