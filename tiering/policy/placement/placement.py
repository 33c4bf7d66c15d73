"""Divides a budget: blocks that stay in memory, blocks that stream, the cache of experts (pure).

Every token uses the dense weights, and only some of the experts. So dense weights are placed first. Those that do not
fit stream through a small region. The ones that stay are spread evenly over the layers, so that the drive has the same
work everywhere. The rest of the budget caches experts, and residuals where experts can be computed without them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...errors import BudgetTooSmall
from ...units import PAGE, BlockId, MiB, align_up, format_size

READ_AHEAD = 16 * MiB
"""Bytes of the streaming region beyond the block in use. They keep the drive busy while a block is computed on."""
ROW_CACHE = 8 * MiB
"""Most bytes kept for rows of an embedding that is read by row. A small embedding gets an eighth."""
WORKING = 96 * MiB
"""Bytes left free for activations, kernels and the runtime. At most a twelfth of the budget."""
NO_OVERLAP = 1 / 8
"""Cost of a region without room to read ahead, as a share of the dense bytes.

Nothing is computed then while the drive reads, and memory is about eight times as fast as a drive."""
EXPERT_SHARE = 0.1
"""Share of a short budget that experts get before dense weights are pinned. With less, every expert is read anew."""

RESIDUAL_SHARE = 1 / 4
"""Share of the cache that residuals get when not all fit. More experts still fit than if each had its residuals."""


class SizedBlock(NamedTuple):
    """A block to place: id, bytes on flash, whether it is always in memory, number of its drive."""

    id: BlockId
    length: int
    resident: bool
    drive: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """The division of a budget. All sizes in bytes."""

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
        """Bytes of the budget that are used."""
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
    """Divide ``budget`` bytes among ``blocks``.

    ``embeddings`` names the blocks that an embedding can read by row. The value says whether only the embedding uses
    the block, so that it is not tied to an output layer. ``scratch`` bytes are for decoding. Rows lie in host memory,
    whichever ``tier`` is divided.

    Raises BudgetTooSmall, which names the minimum.
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
    """The unit of a region for blocks of these ``lengths``, in bytes. With equal lengths no byte is wasted."""
    return lengths[0] if len(set(lengths)) == 1 else PAGE


def working_memory(budget: int) -> int:
    """Bytes of ``budget`` that are left free for computing."""
    return min(WORKING, budget // 12)


def with_working_memory(weights: int) -> int:
    """The budget in bytes that holds ``weights`` bytes and the working memory beside them."""
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
    """Choose the blocks to pin and the bytes of the streaming region, within ``room``, so that a pass reads least.

    A large block in the stream needs a large region. So every size is tried as the largest streamed block: larger
    blocks are pinned, the region fits that size, and the other pinned blocks are spread evenly.
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
    """Blocks of at most ``room`` bytes in all, spread evenly over the sequence and over each drive's part of it.

    The blocks left to stream then keep every drive equally busy.
    """
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
