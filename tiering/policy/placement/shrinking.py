"""Divisions of a placement for lower limits: which pinned blocks stream, how large each region is (pure).

Pinned blocks have one fixed order, in which every beginning is spread evenly over the layers. A limit decides how many
of them stay. So a higher limit keeps all that a lower one keeps, and each block has one place in the arena: a region is
always used from its beginning. Residuals go first.
memory_governor.py decides the limit itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...units import PAGE, BlockId, align_up
from .placement import (
    EXPERT_SHARE,
    READ_AHEAD,
    Placement,
    SizedBlock,
    row_cache_bytes,
    unit_of,
    with_working_memory,
    working_memory,
)

_OUTLIER = 2
"""A block longer than this many medians is kept first: to stream it, the region must be as large."""


@dataclass(frozen=True, slots=True)
class Division:
    """Bytes of each part at one limit. ``bound`` blocks stay at every limit, ``kept`` blocks at this one."""

    bound: int
    kept: int
    stream: int
    experts: int
    residuals: int
    aside: int

    @property
    def blocks(self) -> int:
        """Bytes for blocks. The others, ``aside``, are for rows of embeddings and for decoding."""
        return self.bound + self.kept + self.stream + self.experts + self.residuals

    @property
    def host_bytes(self) -> int:
        """All bytes of the division."""
        return self.blocks + self.aside


class Divisions:
    """The divisions of one model for every limit from ``floor`` to ``ceiling``, at most the placement's budget."""

    def __init__(
        self,
        blocks: Iterable[SizedBlock],
        placement: Placement,
        *,
        floor: int | None,
        embeddings: Mapping[BlockId, bool] | None = None,
    ) -> None:
        """``placement`` places ``blocks`` for the whole budget; ``embeddings`` as for ``place``.

        A ``floor`` below the least budget that the model runs with, or None, becomes that budget.
        """
        self._placement = placement
        self._blocks = {block.id: block for block in blocks}
        embeddings = embeddings or {}
        pinned = [self._blocks[block] for block in placement.pinned]
        rows = [block for block in pinned if embeddings.get(block.id, False)]
        kept = _in_turn([block for block in pinned if block not in rows])
        streamed = [self._blocks[block] for block in placement.streamed]
        experts = [block.length for block in self._blocks.values() if block.id.kind == "expert"]
        self._largest_expert = max(experts, default=0)
        self._unit = unit_of(experts)
        self._residual_unit = unit_of([b.length for b in self._blocks.values() if b.id.kind == "residual"])
        self._sum_up(kept, streamed)
        by_row = [block.id for block in pinned if block.id in embeddings]
        self._rows = tuple(block.id for block in rows)
        self._aside = placement.scratch_bytes + placement.row_cache_bytes
        if not placement.row_cache_bytes:  # else it counts these too
            self._aside += sum(row_cache_bytes(self._blocks[b].length) for b in by_row)
        self._fixed = placement.resident_bytes + self._aside
        least = self._fixed + self._largest[0] + self._largest_expert
        self.ceiling = placement.budget
        if not placement.streamed and not placement.by_row and placement.expert_share == 1:
            self.ceiling = min(placement.budget, with_working_memory(placement.host_bytes))  # more would not be used
        self.floor = min(max(floor or 0, least), self.ceiling)
        self._least = min(least, self.ceiling)

        whole = self.floor == self.ceiling
        bound = len(kept) if whole else self._count(self.floor)
        self.bound = tuple(block.id for block in (kept + rows if whole else kept[:bound]))
        """Pinned blocks that stay at every limit."""
        self._bound = placement.resident_bytes + sum(self._blocks[block].length for block in self.bound)
        self.elastic = () if whole else tuple(block.id for block in (*kept[bound:], *rows))
        """Pinned blocks that some limit does not keep, the last one first."""
        self.by_row = () if whole else tuple(block for block in by_row if block in self.elastic)
        """Pinned blocks that an embedding reads by row while they are not in memory."""
        regions = [placement.stream_region_bytes]
        if not whole:
            regions += [self._ample(count) for count in range(bound, len(kept) + 1)]
        self.stream_capacity = max(regions)
        """Most bytes that the streaming region uses at any limit."""

    def _sum_up(self, kept: Sequence[SizedBlock], streamed: Sequence[SizedBlock]) -> None:
        """For every n: bytes of the first n of ``kept``. Of the other blocks: the bytes of all, and of the largest."""
        self._first, self._rest, self._largest = [0], [_total(streamed)], [_longest(streamed)]
        for block in kept:
            self._first.append(self._first[-1] + block.length)
        for block in reversed(kept):
            self._rest.append(self._rest[-1] + block.length)
            self._largest.append(max(self._largest[-1], block.length))
        self._rest.reverse()
        self._largest.reverse()

    def __eq__(self, other: object) -> bool:
        """Whether both divide alike at every limit: they come from equal blocks, placement and floor."""
        return isinstance(other, Divisions) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.floor, self.ceiling, self.bound, self.elastic))

    @property
    def budget(self) -> int:
        """Bytes that the placement may use."""
        return self._placement.budget

    def read_only_by_row(self, block: BlockId) -> bool:
        """Whether ``block`` is only read by row when it is not kept."""
        return block in self._rows

    def at(self, limit: int) -> Division:
        """The division for ``limit`` bytes, from floor to ceiling."""
        assert self.floor <= limit <= self.ceiling
        whole = self._placement
        if limit == self.ceiling:
            return self._divided(
                whole.pinned_bytes,
                whole.stream_region_bytes,
                whole.expert_region_bytes,
                whole.residual_region_bytes,
                whole.row_cache_bytes + whole.scratch_bytes,
            )
        count = self._count(limit)
        room = self._room(limit) - self._first[count]
        stream = min(self._ample(count), room // PAGE * PAGE)
        left = self._free(limit) - self._fixed - self._first[count] - stream
        experts = min(whole.expert_region_bytes, left) // self._unit * self._unit
        residuals = min(whole.residual_region_bytes, left - experts) // self._residual_unit * self._residual_unit
        return self._divided(self._first[count], stream, experts, residuals, self._aside)

    def _divided(self, pinned: int, stream: int, experts: int, residuals: int, aside: int) -> Division:
        kept = self._placement.resident_bytes + pinned - self._bound
        return Division(self._bound, kept, stream, experts, residuals, aside)

    def _free(self, limit: int) -> int:
        return limit - min(working_memory(limit), limit - self._least)

    def _room(self, limit: int) -> int:
        """Bytes for blocks that are kept and the streaming region."""
        free = self._free(limit)
        experts = min(max(self._largest_expert, int(EXPERT_SHARE * limit)), self._placement.expert_region_bytes)
        return free - self._fixed - min(experts, free - self._least + self._largest_expert)

    def _ample(self, count: int) -> int:
        """Bytes of a streaming region with room to read ahead when the first ``count`` blocks are kept."""
        return min(align_up(self._largest[count] + max(self._largest[count], READ_AHEAD)), self._rest[count])

    def _count(self, limit: int) -> int:
        """The number of blocks that ``limit`` keeps."""
        room = self._room(limit)
        most = range(len(self._first) - 1, -1, -1)
        return next((n for n in most if self._first[n] + self._ample(n) <= room), 0)


def _in_turn(blocks: list[SizedBlock]) -> list[SizedBlock]:
    """``blocks`` in an order in which the first n are spread evenly, for every n, over the layers and over the drives.

    On each drive they follow their reversed binary index. Drives take turns by their shares of the bytes.
    """
    if not blocks:
        return []
    median = sorted(block.length for block in blocks)[len(blocks) // 2]
    large = [block for block in blocks if block.length > _OUTLIER * median]
    others = [block for block in blocks if block.length <= _OUTLIER * median]
    turns: list[tuple[float, int, SizedBlock]] = []
    for drive in sorted({block.drive for block in others}):
        here = [block for block in others if block.drive == drive]
        total, before = _total(here), 0
        bits = max(len(here) - 1, 1).bit_length()
        for index in sorted(range(len(here)), key=lambda index: format(index, f"0{bits}b")[::-1]):
            turns.append((before / total, drive, here[index]))
            before += here[index].length
    turns.sort(key=lambda turn: turn[:2])
    return sorted(large, key=lambda block: -block.length) + [block for _, _, block in turns]


def _total(blocks: Iterable[SizedBlock]) -> int:
    return sum(block.length for block in blocks)


def _longest(blocks: Iterable[SizedBlock]) -> int:
    return max((block.length for block in blocks), default=0)
