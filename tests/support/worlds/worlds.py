"""Worlds for a planner: blocks, where they lie and how much room there is; and random ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from penstock.tiering.planner.planner import Planner
from penstock.tiering.planner.regions import EXPERTS, KEPT, PINNED, RESIDUALS, STREAM, Home
from penstock.tiering.planner.setup import Setup
from penstock.tiering.policy.eviction import EVICTION
from penstock.tiering.units import PAGE, BlockId, Extent

REGIONS = (PINNED, KEPT, STREAM, EXPERTS, RESIDUALS)


@dataclass
class World:
    """Blocks, where they lie, and how much room there is."""

    homes: dict[BlockId, Home]
    capacity: dict[str, int]
    depth: int
    read_limit: int
    eviction: str = "lru"

    def __post_init__(self) -> None:
        """A region that is not named has no room."""
        self.capacity = dict.fromkeys(REGIONS, 0) | self.capacity

    def setup(self) -> Setup:
        order = [block for block, home in self.homes.items() if home.region in (STREAM, KEPT)]
        return Setup(
            self.capacity, {}, self.homes, order, self.eviction, self.depth, self.read_limit, drives=self.drives
        )

    def planner(self) -> Planner:
        return self.setup().planner()

    def largest(self, *regions: str) -> int:
        """Bytes of the largest block of these regions."""
        return max((home.extent.length for home in self.homes.values() if home.region in regions), default=0)

    @property
    def drives(self) -> int:
        return max((home.drive for home in self.homes.values()), default=0) + 1

    def inside(self, region: str) -> list[BlockId]:
        return [block for block, home in self.homes.items() if home.region == region]


def lay_out(
    sizes: list[tuple[BlockId, str, int]], second_file_at: int | None = None, drives: Sequence[int] = ()
) -> dict[BlockId, Home]:
    """Blocks (id, region, pages) end to end on flash, in one file or two; or each at the end of the drive that
    ``drives`` gives it."""
    homes, file, ends = {}, 0, Counter[int]()
    for number, (block, region, pages) in enumerate(sizes):
        drive = drives[number] if drives else 0
        if drives:
            file = drive
        elif number == second_file_at:
            file = 1
        homes[block] = Home(Extent(file, ends[drive], pages * PAGE), region, drive)
        ends[drive] += pages * PAGE
    return homes


@st.composite
def worlds(draw: st.DrawFn) -> World:
    sizes: list[tuple[BlockId, str, int]] = []
    residuals: list[tuple[BlockId, str, int]] = []
    capacity = {}
    expert_pages = draw(st.one_of(st.just(2), st.none()))  # all experts the same size, or not
    for region, most in ((PINNED, 2), (KEPT, 4), (STREAM, 6), (EXPERTS, 8)):
        here = []
        for part in range(draw(st.integers(0, most))):
            block = BlockId("expert", "m", part) if region == EXPERTS else BlockId("dense", f"{region}.{part}")
            pages = expert_pages if region == EXPERTS and expert_pages else draw(st.integers(1, 4))
            here.append((block, region, pages))
        if region == EXPERTS and draw(st.booleans()):
            planes = [(block, plane) for block, _, _ in here for plane in range(1, draw(st.integers(1, 3)))]
            residuals = [(block.residual(plane), RESIDUALS, draw(st.integers(1, 2))) for block, plane in planes]
        total, largest = sum(pages for _, _, pages in here), max((pages for _, _, pages in here), default=0)
        if region == STREAM:  # those of KEPT pass through it when they cannot be kept
            largest = max([largest, *(pages for _, other, pages in sizes if other == KEPT)])
            total = max(total, largest)
        low = total if region in (PINNED, KEPT) else largest
        capacity[region] = draw(st.one_of(st.just(low), st.integers(low, total))) * PAGE  # tight is where it hurts
        sizes += here
    pages = sum(pages for _, _, pages in residuals)
    capacity[RESIDUALS] = draw(st.one_of(st.just(pages), st.integers(0, pages))) * PAGE
    sizes += residuals
    if draw(st.booleans()):
        sizes = draw(st.permutations(sizes))
    second = draw(st.one_of(st.none(), st.integers(0, len(sizes))))
    drives = draw(st.one_of(st.just([]), st.lists(st.integers(0, 1), min_size=len(sizes), max_size=len(sizes))))
    homes, place = lay_out(sizes, second, drives), capacity[PINNED]
    for block, _, pages in draw(st.permutations([size for size in sizes if size[1] == KEPT])):
        homes[block] = replace(homes[block], place=place, streamable=draw(st.integers(0, 3)) > 0)
        place += pages * PAGE
    return World(
        homes,
        capacity,
        depth=draw(st.integers(1, 3)),
        read_limit=draw(st.integers(1, 8)) * PAGE,
        eviction=draw(st.sampled_from(sorted(EVICTION))),
    )
