"""Places blocks in the device tier and the host tier, for a budget of each (pure).

The device's budget is divided as if flash were directly below it. The host's budget is then divided among the blocks
that do not stay on the device, since those pass through the host. So the blocks that stay on the device and the blocks
that stay in host memory are each spread over the layers, and blocks missing in both come from flash.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ...units import BlockId
from .placement import Placement, SizedBlock, place, row_cache_bytes


class Tiers(NamedTuple):
    """Placements of the ``host`` and the ``device`` tier. ``below`` are the blocks that pass through the host tier."""

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
    """Divide ``device`` and ``host`` bytes among ``blocks``; ``embeddings`` and ``scratch`` as for ``place``.

    Decoding is done on the device, rows of embeddings lie in host memory. Raises BudgetTooSmall, which names the tier.
    """
    blocks = tuple(blocks)
    above = place(blocks, device, embeddings=embeddings, scratch=scratch, tier="device")
    rows = sum(row_cache_bytes(block.length) for block in blocks if block.id in above.by_row)
    stay = {*above.resident, *above.pinned}
    passing = {*above.streamed} | {block.id for block in blocks if block.id.kind != "dense"}
    below = tuple(block for block in blocks if block.id in passing - stay)
    placement = place(below, host, scratch=rows)
    if placement.residual_region_bytes < max((block.length for block in below if _is_residual(block)), default=0):
        below = tuple(block for block in below if not _is_residual(block))  # the host would never hold them
        placement = place(below, host, scratch=rows)
    return Tiers(above, placement, below)


def _is_residual(block: SizedBlock) -> bool:
    return block.id.kind == "residual"
