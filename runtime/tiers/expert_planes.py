"""The bit planes of experts that are read, by the quality that is asked for (pure)."""

from collections.abc import Sequence
from dataclasses import replace

from ...tiering.errors import BundleError
from ...tiering.store.bundle.manifest import Block
from ...tiering.units import Extent

FULL, ADAPTIVE, BASE = "full", "adaptive", "base"
"""All planes at once; the first plane, and the others as far as there is time; the first plane alone."""


def units(blocks: Sequence[Block], quality: str) -> tuple[Block, ...]:
    """``blocks`` of a bundle, in its order, as they move between tiers: blocks always read together are joined.

    A joined block has the tensors of all its parts, so it has several planes under one name. Its checksums are those of
    its parts. Raises BundleError where residuals do not lie behind their expert.
    """
    if quality == ADAPTIVE:
        return tuple(blocks)
    found: list[Block] = []
    for block in blocks:
        if block.id.kind != "residual":
            found.append(block)
        elif quality == FULL:
            found[-1] = _joined(found[-1], block)
    return tuple(found)


def stacks(blocks: Sequence[Block]) -> list[list[Block]]:
    """The experts among ``blocks``, each with its residuals, first planes first."""
    found: list[list[Block]] = []
    for block in blocks:
        if block.id.kind == "expert":
            found.append([block])
        elif block.id.kind == "residual":
            found[-1].append(block)
    return found


def _joined(block: Block, behind: Block) -> Block:
    here, there = block.extent, behind.extent
    if (here.file, here.end) != (there.file, there.offset) or block.id.expert != behind.id.expert:
        raise BundleError(f"block {behind.id} does not lie behind its expert; delete the bundle and pack again")
    tensors = tuple(replace(spec, offset=here.length + spec.offset) for spec in behind.tensors)
    extent = Extent(here.file, here.offset, here.length + there.length)
    return replace(block, extent=extent, checksum="", tensors=block.tensors + tensors)
