"""Deal the blocks of a layout to several drives, in proportion to their speeds (pure)."""

import re
from collections.abc import Sequence
from dataclasses import replace

from ....tiering.store.bundle.manifest import Block, BundleDrive
from ....tiering.units import Extent
from ...checkpoints import layout as layouts
from ...checkpoints.layout import Layout


def stripe(layout: Layout, drives: Sequence[BundleDrive]) -> Layout:
    """Return ``layout`` with its blocks dealt to ``drives``. Without drives, it stays as it is.

    The blocks of a drive lie end to end in data files of its own, in the order of use, so neighbours still join into
    one read.
    """
    if not drives:
        return layout
    places: list[int] = []  # the drive of each data file
    ends: dict[int, tuple[int, int]] = {}  # drive to its last file and that file's end
    blocks = []
    for block, drive in zip(layout.blocks, deal(layout.blocks, [d.bytes_per_second for d in drives]), strict=True):
        length = block.extent.length
        file, offset = ends.get(drive, (-1, 0))
        if file < 0 or (offset + length > layouts.FILE_LIMIT and block.id.kind != "residual"):
            file, offset = len(places), 0
            places.append(drive)
        ends[drive] = file, offset + length
        blocks.append(replace(block, extent=Extent(file, offset, length)))
    return replace(layout, blocks=tuple(blocks), drives=tuple(places))


def deal(blocks: Sequence[Block], speeds: Sequence[int]) -> list[int]:
    """Return the drive of each of ``blocks``, by a smooth weighted round robin over their bytes.

    Every drive is credited its share of each block, and the one with the most credit gets it: neighbours alternate,
    and any run of blocks is shared as the speeds say, to within a block or two. Credit is kept apart for each kind of
    block, since the kinds are read at different times; a residual goes where its expert went. What is carried from one
    layer to the next is at most a block of that layer, or a large embedding would send whole layers to other drives.
    """
    largest: dict[tuple[object, ...], int] = {}
    for block in blocks:
        group = _group(block)
        largest[group] = max(largest.get(group, 0), block.extent.length)
    total = sum(speeds)
    owed: dict[tuple[object, ...], list[int]] = {}
    current: dict[tuple[object, ...], tuple[object, ...]] = {}
    dealt: list[int] = []
    for block in blocks:
        group = _group(block)
        kind = group[:2]
        credit = owed.setdefault(kind, [0] * len(speeds))
        if current.get(kind) != group:
            current[kind] = group
            bound = largest[group] * total
            credit[:] = [max(-bound, min(bound, each)) for each in credit]
        length = block.extent.length
        for drive, speed in enumerate(speeds):
            credit[drive] += speed * length
        chosen = dealt[-1] if block.id.kind == "residual" else credit.index(max(credit))
        credit[chosen] -= total * length
        dealt.append(chosen)
    return dealt


def _group(block: Block) -> tuple[object, ...]:
    """Return the group of blocks that are read together: kind and layer, the path up to the first number in it."""
    layer = re.match(r"(?:[^.]+\.)*?\d+(?=\.|$)", block.id.module)
    return block.id.expert is None, block.resident, layer[0] if layer else block.id.module
