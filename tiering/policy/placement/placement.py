"""What stays in memory, what streams, what is cached, for a budget (pure).

Dense weights are used at every token, a byte of an expert only at some: dense weights are placed first. Those that do
not fit are streamed through a small region; which of them stay is spread evenly over the layers, so that the drive has
the same work everywhere. What is left caches experts, and, where these can be computed without them, their residuals.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...errors import BudgetTooSmall
from ...units import PAGE, BlockId, MiB, align_up, format_size

READ_AHEAD = 16 * MiB
"""Bytes of the streaming region, beyond the block in use, that let the drive work while a block is computed on."""
ROW_CACHE = 8 * MiB
"""Bytes kept for rows of an embedding that is read by row, at most; of a small embedding an eighth."""
WORKING = 96 * MiB
"""Bytes left for what computing takes besides weights: activations, kernels, the runtime. At most a twelfth."""
NO_OVERLAP = 1 / 8
"""What a region without room to read ahead costs, as a share of the dense bytes that might be read instead: nothing is
computed while the drive reads then, and memory is some eight times as fast as a drive."""
EXPERT_SHARE = 0.1
"""Share of a short budget kept for experts before dense weights are pinned: below it every expert is read anew."""

RESIDUAL_SHARE = 1 / 4
"""Share of the cache of experts that goes to residuals where there is not room for all: even so more experts find room
than with their residuals, which take nearly half of both."""


class SizedBlock(NamedTuple):
    """A block as placement sees it: its id, its bytes on flash, whether it must always be in memory, and its drive."""

    id: BlockId
    length: int
    resident: bool
    drive: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """The decision. All sizes in bytes."""

    budget: int
    minimum: int
    resident: tuple[BlockId, ...]
    pinned: tuple[BlockId, ...]
    streamed: tuple[BlockId, ...]
    by_row: tuple[BlockId, ...]
    resident_bytes: int
    pinned_bytes: int
    streamed_bytes: int
    stream_region_bytes: int
    row_cache_bytes: int
    scratch_bytes: int
    expert_count: int
    expert_total_bytes: int
    expert_region_bytes: int
    residual_total_bytes: int
    residual_region_bytes: int

    @property
    def host_bytes(self) -> int:
        """Bytes of the budget that are put to use."""
        return (
            self.resident_bytes
            + self.pinned_bytes
            + self.stream_region_bytes
            + self.row_cache_bytes
            + self.scratch_bytes
            + self.expert_region_bytes
            + self.residual_region_bytes
        )

    @property
    def expert_share(self) -> float:
        """Fraction of the experts' bytes that the cache holds."""
        return self.expert_region_bytes / self.expert_total_bytes if self.expert_total_bytes else 1.0


def place(
    blocks: Iterable[SizedBlock],
    budget: int,
    *,
    embeddings: Mapping[BlockId, bool] | None = None,
    scratch: int = 0,
    tier: str = "host",
) -> Placement:
    """Divide ``budget`` bytes. ``embeddings`` names the blocks that an embedding can read by row, and says of each
    whether the embedding is alone in using it (not tied to an output layer, say). ``scratch`` bytes are for decoding.
    Rows that are read lie in host memory, whichever ``tier`` is divided.

    Raises BudgetTooSmall, which says the least that would do.
    """
    blocks = tuple(blocks)
    resident = [block for block in blocks if block.resident]
    dense = [block for block in blocks if block.id.kind == "dense" and not block.resident]
    experts = [block.length for block in blocks if block.id.kind == "expert"]
    residuals = [block.length for block in blocks if block.id.kind == "residual"]
    resident_bytes, expert_total, residual_total = _total(resident), sum(experts), sum(residuals)
    largest_expert = max(experts, default=0)

    rows: list[SizedBlock] = []
    row_cache = 0
    if resident_bytes + scratch + _total(dense) + expert_total + residual_total > budget - working_memory(budget):
        alone = embeddings or {}
        rows = [block for block in dense if block.id in alone]
        row_cache = sum(row_cache_bytes(block.length) for block in rows) if tier == "host" else 0
        dense = [block for block in dense if not alone.get(block.id, False)]
    fixed = resident_bytes + scratch + row_cache
    minimum = fixed + max((block.length for block in dense), default=0) + largest_expert
    if budget < minimum:
        raise BudgetTooSmall(_explain(f"{tier}_memory", budget, minimum, fixed, dense, largest_expert))
    free = budget - min(working_memory(budget), budget - minimum)

    pinned, region = _pinned(dense, free, fixed, _expert_floor(budget, free, minimum, expert_total, largest_expert))
    pinned_ids = {block.id for block in pinned}
    pinned_bytes = _total(pinned)
    expert_region, residual_region = _caches(free - fixed - pinned_bytes - region, experts, residuals)
    return Placement(
        budget=budget,
        minimum=minimum,
        resident=tuple(block.id for block in resident),
        pinned=tuple(block.id for block in pinned),
        streamed=tuple(block.id for block in dense if block.id not in pinned_ids),
        by_row=tuple(block.id for block in rows if block.id not in pinned_ids),
        resident_bytes=resident_bytes,
        pinned_bytes=pinned_bytes,
        streamed_bytes=_total(dense) - pinned_bytes,
        stream_region_bytes=region,
        row_cache_bytes=row_cache,
        scratch_bytes=scratch,
        expert_count=len(experts),
        expert_total_bytes=expert_total,
        expert_region_bytes=expert_region,
        residual_total_bytes=residual_total,
        residual_region_bytes=residual_region,
    )


def _expert_floor(budget: int, free: int, minimum: int, expert_total: int, largest_expert: int) -> int:
    """Bytes that the cache of experts gets before dense weights are pinned."""
    floor = min(expert_total, max(largest_expert, int(EXPERT_SHARE * budget)))
    return min(floor, free - (minimum - largest_expert))


def _pinned(dense: Sequence[SizedBlock], free: int, fixed: int, expert_floor: int) -> tuple[Sequence[SizedBlock], int]:
    """The dense blocks that stay in memory, and the bytes of the streaming region for the others."""
    if fixed + _total(dense) + expert_floor <= free:
        return dense, 0
    return _pin(dense, free - fixed - expert_floor)


def _caches(room: int, experts: Sequence[int], residuals: Sequence[int]) -> tuple[int, int]:
    """Bytes of the regions of experts and of residuals, of these lengths, in ``room`` bytes for both."""
    expert_total, largest_expert = sum(experts), max(experts, default=0)
    wanted = max(room - expert_total, int(RESIDUAL_SHARE * room))
    residual_region = min(wanted, room - largest_expert, sum(residuals))
    residual_region = residual_region // unit_of(residuals) * unit_of(residuals)
    return min(expert_total, room - residual_region) // unit_of(experts) * unit_of(experts), residual_region


def unit_of(lengths: Sequence[int]) -> int:
    """What a region for blocks of these lengths is a multiple of, in bytes: where all are equal, nothing is lost."""
    return lengths[0] if len(set(lengths)) == 1 else PAGE


def working_memory(budget: int) -> int:
    """Bytes of ``budget`` that are left free for computing."""
    return min(WORKING, budget // 12)


def with_working_memory(weights: int) -> int:
    """The budget in bytes that holds ``weights`` bytes and what is left free for computing."""
    return weights + min(WORKING, weights // 11 + 1)  # an eleventh of the weights is a twelfth of the budget


def row_cache_bytes(length: int) -> int:
    """Bytes to keep for rows of an embedding block of ``length`` bytes."""
    return min(ROW_CACHE, align_up(length // 8))


def _total(blocks: Iterable[SizedBlock]) -> int:
    return sum(block.length for block in blocks)


def _explain(
    setting: str, budget: int, minimum: int, fixed: int, dense: Sequence[SizedBlock], largest_expert: int
) -> str:
    parts = [f"{format_size(fixed)} that is always in memory"]
    if dense:
        largest = max(dense, key=lambda block: block.length)
        parts.append(f"the largest layer {largest.id.module!r} with {format_size(largest.length)}")
    if largest_expert:
        parts.append(f"one expert with {format_size(largest_expert)}")
    return (
        f"{setting} is {format_size(budget)}, but this model needs {' + '.join(parts)}; "
        f"set {setting} to at least {minimum} bytes ({format_size(minimum)})"
    )


def _pin(dense: Sequence[SizedBlock], room: int) -> tuple[list[SizedBlock], int]:
    """Choose what to pin and how large the streaming region is, within ``room``, so that a pass takes least.

    A large block in the stream costs a large region. So for every possible size of the largest streamed block: pin all
    that is larger, take the region that this size needs, and spread the rest evenly.
    """
    best: tuple[float, list[SizedBlock], int] | None = None
    total = _total(dense)
    for largest in sorted({block.length for block in dense}):
        forced = _total(block for block in dense if block.length > largest)
        candidates = [block for block in dense if block.length <= largest]
        ample = min(largest + max(largest, READ_AHEAD), _total(candidates))
        for region, lost in ((ample, 0.0), (largest, NO_OVERLAP * total)):
            spare = room - forced - region
            if spare < 0:
                continue
            spread = {block.id for block in _spread(candidates, spare)}
            pinned = [block for block in dense if block.length > largest or block.id in spread]
            cost = total - _total(pinned) + lost
            if best is None or cost < best[0]:
                best = cost, pinned, region
            break
    assert best is not None, "room for the largest block was checked"
    return best[1], best[2]


def _spread(blocks: Sequence[SizedBlock], room: int) -> list[SizedBlock]:
    """Blocks of at most ``room`` bytes in all, spread evenly over the sequence, and over each drive's part of it: what
    is left to stream keeps every drive as busy as before."""
    total = _total(blocks)
    chosen: list[SizedBlock] = []
    passed: list[SizedBlock] = []
    due: dict[int, float] = {}
    left = room
    for block in blocks:
        due[block.drive] = due.get(block.drive, 0.0) + block.length * room / total
        if due[block.drive] >= block.length and block.length <= left:
            chosen.append(block)
            left -= block.length
            due[block.drive] -= block.length
        else:
            passed.append(block)
    for block in passed:
        if block.length <= left:
            chosen.append(block)
            left -= block.length
    return chosen
