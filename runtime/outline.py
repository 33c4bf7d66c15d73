"""A model's outline: which blocks it has or will have, and what a token asks of them; no weight is read for it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..tiering.errors import BudgetTooSmall
from ..tiering.policy.cost import ExpertLayer, Load
from ..tiering.policy.division import Divisions
from ..tiering.policy.placement import Placement, SizedBlock, place, with_working_memory
from ..tiering.units import BlockId
from .compose import embeddings
from .layout import Layout
from .routing import experts_per_token


@dataclass(frozen=True, slots=True)
class Outline:
    """``embeddings`` are blocks that can be read by row, each with whether nothing else uses them. ``guessed``: nothing
    tells how many experts a token uses, so all are taken to be used."""

    blocks: tuple[SizedBlock, ...]
    embeddings: Mapping[BlockId, bool]
    layers: tuple[ExpertLayer, ...]
    guessed: bool

    @classmethod
    def of(cls, model: nn.Module, layout: Layout) -> "Outline":
        """The outline of ``model``, which may be on the meta device, with its ``layout``."""
        per_token = experts_per_token(model)
        lengths: dict[str, list[int]] = {}
        for block in layout.blocks:
            if block.id.kind == "expert":
                lengths.setdefault(block.id.module, []).append(block.extent.length)
        return cls(
            blocks=tuple(SizedBlock(block.id, block.extent.length, block.resident) for block in layout.blocks),
            embeddings=embeddings(model, layout.blocks, layout.tied),
            layers=tuple(
                ExpertLayer(len(bytes_), per_token.get(path) or len(bytes_), sum(bytes_))
                for path, bytes_ in lengths.items()
            ),
            guessed=any(per_token.get(path) is None for path in lengths),
        )

    @property
    def total_bytes(self) -> int:
        return sum(block.length for block in self.blocks)

    @property
    def least_budget(self) -> int:
        """The least host memory in bytes that ``place`` accepts."""
        too_small, enough = 0, 2 * with_working_memory(self.total_bytes)
        while enough - too_small > 1:
            budget = (too_small + enough) // 2
            try:
                self.place(budget)
                enough = budget
            except BudgetTooSmall:
                too_small = budget
        return enough

    def place(self, budget: int) -> Placement:
        """What goes where with ``budget`` bytes of host memory. Raises BudgetTooSmall."""
        return place(self.blocks, budget, embeddings=self.embeddings)

    def floor(self, placement: Placement, floor: int | None) -> int:
        """Bytes of host memory that ``placement`` shrinks to under pressure; ``floor`` bytes if given and possible."""
        return Divisions(self.blocks, placement, floor=floor, embeddings=self.embeddings).floor

    def load(self, placement: Placement) -> Load:
        """What one token asks of memory and drive. An embedding that nothing else uses gives a row: next to nothing."""
        dense = sum(block.length for block in self.blocks if block.id.kind == "dense")
        rows_only = sum(block.length for block in self.blocks if self.embeddings.get(block.id))
        return Load(dense - rows_only, placement.streamed_bytes, self.layers, placement.expert_share)
