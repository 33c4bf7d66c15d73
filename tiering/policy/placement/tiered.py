"""What lies in which tier, for a budget of each (pure).

The device's budget is divided as if flash were right below it. What stays on the device is nobody else's; the host's
budget is divided among the rest, which passes through it on its way up. So what stays on the device and what stays in
the host's memory are spread over the layers each, and all that is missing in both comes from flash.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ...units import BlockId
from .placement import Placement, SizedBlock, place, row_cache_bytes


class Tiers(NamedTuple):
    """``below`` are the blocks that pass through the host tier; ``host`` is its placement, ``device`` the other's."""

    device: Placement
    host: Placement
    below: tuple[SizedBlock, ...]


def place_in_tiers(
    blocks: Iterable[SizedBlock],
    *,
    device: int,
    host: int,
    embeddings: Mapping[BlockId, bool],
    scratch: int = 0,
) -> Tiers:
    """Divide ``device`` and ``host`` bytes; ``embeddings`` and ``scratch`` as for ``place``: decoding is done on the
    device, rows of embeddings are read in host memory. Raises BudgetTooSmall, which says of which there is too little.
    """
    blocks = tuple(blocks)
    above = place(blocks, device, embeddings=embeddings, scratch=scratch, tier="device")
    rows = sum(row_cache_bytes(block.length) for block in blocks if block.id in above.by_row)
    stay = {*above.resident, *above.pinned}
    passing = {*above.streamed} | {block.id for block in blocks if block.id.kind != "dense"}
    below = tuple(block for block in blocks if block.id in passing - stay)
    placement = place(below, host, scratch=rows)
    if placement.residual_region_bytes < max((block.length for block in below if _is_residual(block)), default=0):
        below = tuple(block for block in below if not _is_residual(block))  # they would never be there
        placement = place(below, host, scratch=rows)
    return Tiers(above, placement, below)


def _is_residual(block: SizedBlock) -> bool:
    return block.id.kind == "residual"
