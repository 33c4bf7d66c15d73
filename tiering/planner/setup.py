"""The initial state of a planner as plain values, from which equal planners can be built (pure)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..policy.drive_reading import Reading
from ..policy.eviction import EVICTION
from ..policy.placement.placement import Placement, SizedBlock
from ..policy.placement.shrinking import Divisions
from ..policy.prefetch.cycle import Cycle
from ..policy.prefetch.speculation import Speculation
from ..units import BlockId, Extent
from .planner import Planner
from .regions import EXPERTS, KEPT, PINNED, RESIDUALS, STREAM, Home
from .residency import Residency


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a planner begins with.

    ``regions`` are capacities in bytes, ``limits`` the bytes in use at first, both by region. ``homes`` are in the
    order of the bundle. ``cycle`` is the order of the dense blocks that may be streamed. ``eviction`` is a name in
    EVICTION. ``depth``, ``read_limit`` and ``drives`` are as for Planner. ``guess`` allows guessed reads. ``tier``
    names the tier.
    """

    regions: Mapping[str, int]
    limits: Mapping[str, int]
    homes: Mapping[BlockId, Home]
    cycle: Sequence[BlockId]
    eviction: str
    depth: int
    read_limit: int
    drives: int = 1
    guess: bool = True
    tier: str = "host"

    def planner(self) -> Planner:
        """A new planner."""
        residency = Residency(self.tier, self.regions)
        for region, limit in self.limits.items():
            residency.resize(region, limit)
        return Planner(
            residency,
            self.homes,
            cycle=Cycle(self.cycle),
            experts=EVICTION[self.eviction],
            speculation=Speculation(allowed=self.guess),
            depth=self.depth,
            read_limit=self.read_limit,
            drives=self.drives,
        )


_REGION = {"dense": STREAM, "expert": EXPERTS, "residual": RESIDUALS}


def setup_of(
    blocks: Iterable[tuple[BlockId, Extent, int]],
    placement: Placement,
    divisions: Divisions,
    reading: Reading,
    *,
    drives: int,
    eviction: str,
    guess: bool,
) -> Setup:
    """The setup for ``blocks`` (id, extent on flash, number of the drive), in the order of the bundle.

    ``divisions`` of ``placement`` say which blocks stay when memory runs short. The whole budget is used at first.
    ``reading`` says how each drive is read.
    """
    whole = divisions.at(divisions.ceiling)
    regions = {
        PINNED: whole.bound,
        KEPT: whole.kept,
        STREAM: divisions.stream_capacity,
        EXPERTS: whole.experts,
        RESIDUALS: whole.residuals,
    }
    bound = {*placement.resident, *divisions.bound}
    streamed = {*placement.streamed, *divisions.elastic}
    homes: dict[BlockId, Home] = {}
    for block, extent, drive in blocks:
        region = PINNED if block in bound else _REGION[block.kind]
        homes[block] = Home(extent, region, drive)
    place = whole.bound  # start of the places of elastic blocks; the last ones to go come first
    for block in divisions.elastic:
        home = homes[block]
        streamable = not divisions.read_only_by_row(block)
        homes[block] = Home(home.extent, KEPT, home.drive, place=place, streamable=streamable)
        place += home.extent.length
    return Setup(
        regions=regions,
        limits=regions | {STREAM: whole.stream},
        homes=homes,
        cycle=[block for block in homes if block in streamed],
        eviction=eviction,
        depth=reading.depth,
        read_limit=reading.size,
        drives=drives,
        guess=guess,
    )


COPIES_AHEAD = 2
"""Blocks that may wait for their copy to the device, beside those that wait for flash."""


def device_setup(
    blocks: Iterable[tuple[SizedBlock, Extent]],
    placement: Placement,
    reading: Reading,
    *,
    drives: int,
    eviction: str,
    guess: bool,
) -> Setup:
    """The setup of the device tier's planner, for a ``placement`` of ``blocks`` on the device.

    The host tier is its one drive. It takes as many reads as all ``drives`` of the host do, and some more for blocks
    that only need a copy. Every block is copied by itself.
    """
    blocks = tuple(blocks)
    setup = setup_of(
        ((block.id, extent, 0) for block, extent in blocks),
        placement,
        Divisions([block for block, _ in blocks], placement, floor=placement.budget),
        replace(reading, depth=reading.depth * drives + COPIES_AHEAD, size=0),
        drives=1,
        eviction=eviction,
        guess=guess,
    )
    return replace(setup, tier="device")
