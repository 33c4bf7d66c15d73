"""A model's outline: which blocks it has or will have, and what a token asks of them; no weight is read for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from torch import nn

from ...tiering.errors import BudgetTooSmall
from ...tiering.planner.setup import Setup, device_setup, setup_of
from ...tiering.policy.placement.placement import Placement, SizedBlock, place, with_working_memory
from ...tiering.policy.placement.shrinking import Divisions
from ...tiering.policy.placement.tiered import Tiers, place_in_tiers
from ...tiering.policy.reads import Reading
from ...tiering.sim.workload import Layer, layers_of
from ...tiering.units import BlockId, Extent
from ..checkpoints.layout import Layout
from ..routing.router import router_of
from ..routing.top_k import experts_per_token
from .load import embeddings, scratch_bytes


class ExpertLayer(NamedTuple):
    """The experts of the module ``path``: how many there are, how many a token uses, bytes of all of them."""

    path: str
    experts: int
    per_token: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Outline:
    """``blocks`` in the order of the bundle, each with its extent. ``embeddings`` are blocks that can be read by row,
    each with whether nothing else uses them. ``guessed``: nothing tells how many experts a token uses, so all are taken
    to be used. ``foreseen``: a layer's experts can be guessed from the layer before. ``dtype`` is the model's;
    decoding takes ``scratch`` bytes."""

    blocks: tuple[SizedBlock, ...]
    extents: tuple[Extent, ...]
    embeddings: Mapping[BlockId, bool]
    layers: tuple[ExpertLayer, ...]
    guessed: bool
    foreseen: bool
    dtype: str
    scratch: int

    @classmethod
    def of(cls, model: nn.Module, layout: Layout) -> "Outline":
        """The outline of ``model``, which may be on the meta device, with its ``layout``."""
        per_token = experts_per_token(model)
        lengths: dict[str, list[int]] = {}
        for block in layout.blocks:
            if block.id.kind == "expert":
                lengths.setdefault(block.id.module, []).append(block.extent.length)
        return cls(
            blocks=tuple(
                SizedBlock(block.id, block.extent.length, block.resident, layout.drive_of(block))
                for block in layout.blocks
            ),
            extents=tuple(block.extent for block in layout.blocks),
            embeddings=embeddings(model, layout.blocks, layout.tied),
            layers=tuple(
                ExpertLayer(path, len(bytes_), per_token.get(path) or len(bytes_), sum(bytes_))
                for path, bytes_ in lengths.items()
            ),
            guessed=any(per_token.get(path) is None for path in lengths),
            foreseen=any(router_of(model, after) is not None for _, after in pairwise(lengths)),
            dtype=str(model.dtype).removeprefix("torch."),
            scratch=scratch_bytes(layout.blocks),
        )

    @property
    def total_bytes(self) -> int:
        return sum(block.length for block in self.blocks)

    @property
    def least_budget(self) -> int:
        """The least host memory in bytes that ``place`` accepts."""
        return self._least(self.place)

    def least_below(self, device: int) -> int:
        """The least host memory in bytes below ``device`` bytes of a device. Raises BudgetTooSmall where those are too
        few."""
        self.place_in_tiers(device, 2 * with_working_memory(self.total_bytes))
        return self._least(partial(self.place_in_tiers, device))

    def _least(self, fits: Callable[[int], object]) -> int:
        too_small, enough = -1, 2 * with_working_memory(self.total_bytes)
        while enough - too_small > 1:
            budget = (too_small + enough) // 2
            try:
                fits(budget)
                enough = budget
            except BudgetTooSmall:
                too_small = budget
        return enough

    def place(self, budget: int) -> Placement:
        """What goes where with ``budget`` bytes of host memory. Raises BudgetTooSmall."""
        return place(self.blocks, budget, embeddings=self.embeddings, scratch=self.scratch)

    def place_in_tiers(self, device: int, host: int) -> Tiers:
        """What goes where with ``device`` bytes of a device's memory above ``host`` bytes. Raises BudgetTooSmall."""
        return place_in_tiers(self.blocks, device=device, host=host, embeddings=self.embeddings, scratch=self.scratch)

    def device_setup(self, tiers: Tiers, reading: Reading, *, eviction: str, guess: bool) -> tuple[Setup, Setup]:
        """What the planners of both tiers begin with, the device's first."""
        pairs = tuple(zip(self.blocks, self.extents, strict=True))
        passing = {block.id for block in tiers.below}
        drives = 1 + max(block.drive for block in self.blocks)
        below = setup_of(
            ((block.id, extent, block.drive) for block, extent in pairs if block.id in passing),
            tiers.host,
            Divisions(tiers.below, tiers.host, floor=tiers.host.budget),
            reading,
            drives=drives,
            eviction=eviction,
            guess=guess,
        )
        return device_setup(pairs, tiers.device, reading, drives=drives, eviction=eviction, guess=guess), below

    def divisions(self, placement: Placement, floor: int | None) -> Divisions:
        """What stays of ``placement`` under memory pressure; ``floor`` bytes of it, if given and possible."""
        return Divisions(self.blocks, placement, floor=floor, embeddings=self.embeddings)

    def setup(
        self, placement: Placement, divisions: Divisions, reading: Reading, *, eviction: str, guess: bool
    ) -> Setup:
        """What a planner of this model begins with."""
        return setup_of(
            ((block.id, extent, block.drive) for block, extent in zip(self.blocks, self.extents, strict=True)),
            placement,
            divisions,
            reading,
            drives=1 + max(block.drive for block in self.blocks),
            eviction=eviction,
            guess=guess,
        )

    @property
    def passed(self) -> list[Layer]:
        """What a token goes through, layer by layer. Of an embedding that nothing else uses it takes a row: nothing."""
        return layers_of(block.id for block in self.blocks if not self.embeddings.get(block.id))
