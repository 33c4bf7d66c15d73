"""A look at a tier: how full its regions are, and which experts lie in it (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..units import BlockId
from .planner import Planner


@dataclass(frozen=True, slots=True)
class RegionUse:
    """A part of a tier's memory: bytes in use, the most that may be used now, and the most ever."""

    name: str
    used: int
    limit: int
    capacity: int


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """The experts of one layer by number: how often each was asked for since counting began, and whether it is in
    memory."""

    module: str
    uses: tuple[int, ...]
    here: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class TierUse:
    """A tier at one moment. ``experts`` in the order of their layers; none if their uses are not counted."""

    regions: tuple[RegionUse, ...]
    experts: tuple[ExpertUse, ...]


def look_at(planner: Planner) -> TierUse:
    """The tier of ``planner`` now."""
    regions = tuple(
        RegionUse(name, region.capacity - sum(length for _, length in region.space.holes()), region.limit, capacity)
        for name, region in planner.residency.regions.items()
        if (capacity := region.capacity)
    )
    return TierUse(regions, () if planner.uses is None else _experts(planner, planner.uses))


def _experts(planner: Planner, uses: Mapping[BlockId, int]) -> tuple[ExpertUse, ...]:
    layers: dict[str, list[BlockId]] = {}
    for block in planner.experts:
        layers.setdefault(block.module, []).append(block)
    return tuple(
        ExpertUse(
            module,
            tuple(uses.get(block, 0) for block in sorted(blocks)),
            tuple(planner.residency.slot(block) is not None for block in sorted(blocks)),
        )
        for module, blocks in layers.items()
    )
