"""What holds for every manifest (pure): files, extents, tensors and planes fit each other, without overlap or gap.

Whether it holds what a model needs is for runtime/loading/stored_layout.py to say.
"""

import re
from dataclasses import replace
from math import prod
from posixpath import isabs, normpath

from ...units import PAGE, BlockId
from .manifest import DATA, Block, Manifest, TensorSpec, place_tensors

MOST_BYTES = 1 << 50
"""Bytes of a data file, and numbers of a tensor, that no bundle comes near. Sums of such numbers do not wrap."""

NUMBER_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e8m0fnu": 1,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
"""The dtypes that a tensor may have, and the bytes of one number."""

_PART = re.compile(r".+\.[0-9a-f]{16}")
"""The name of a bundle's folder on another drive, as stripes.py makes it."""


def check(manifest: Manifest) -> None:
    """Raise ValueError, with the place, for a manifest that no packing could have written."""
    if manifest.dtype not in NUMBER_BYTES:
        raise ValueError(f"its dtype {manifest.dtype!r} is unknown")
    _check_drives(manifest)
    _check_files(manifest)
    _check_extents(manifest)
    for block in manifest.blocks:
        _check_tensors(block)
    _check_planes(manifest)


def _check_drives(manifest: Manifest) -> None:
    if manifest.drives and manifest.drives[0].folder:
        raise ValueError("its first drive is not its own")
    for drive in manifest.drives[1:]:
        folder = drive.folder
        if not isabs(folder) or normpath(folder) != folder or not _PART.fullmatch(folder.rpartition("/")[2]):
            raise ValueError(f"drive {folder!r} is no absolute path of a part of a bundle")


def _check_files(manifest: Manifest) -> None:
    seen: set[str] = set()
    for file in manifest.files:
        if not DATA.fullmatch(file.name):
            raise ValueError(f"data file {file.name!r} is not named as in data-00000.bin")
        if file.name in seen:
            raise ValueError(f"data file {file.name} is listed twice")
        seen.add(file.name)
        if not 0 <= file.drive < max(1, len(manifest.drives)):
            raise ValueError(f"data file {file.name} is on a drive that is not listed")


def _check_extents(manifest: Manifest) -> None:
    """Blocks fill their files from the first byte to the last, in their order."""
    ends = [0] * len(manifest.files)
    seen: set[BlockId] = set()
    for block in manifest.blocks:
        extent = block.extent
        if block.id in seen:
            raise ValueError(f"block {block.id} is listed twice")
        seen.add(block.id)
        if not 0 <= extent.file < len(ends):
            raise ValueError(f"block {block.id} is in a file that is not listed")
        if extent.offset != ends[extent.file] or extent.length % PAGE or extent.length <= 0:
            raise ValueError(f"block {block.id} has an impossible extent")
        ends[extent.file] = extent.end
    for file, end in zip(manifest.files, ends, strict=True):
        if end != file.length:
            raise ValueError(f"data file {file.name} has {file.length} bytes, its blocks {end}")


def _check_tensors(block: Block) -> None:
    """Tensors lie where packing places them, and are as long as their dtype and shape say."""
    seen: set[tuple[str, int]] = set()
    for spec in block.tensors:
        _check_numbers(block, spec)
        key = spec.name, 0 if spec.packing is None else spec.packing.plane
        if key in seen:
            raise ValueError(f"block {block.id} has tensor {spec.name} twice")
        seen.add(key)
    entries = [(spec.name, spec.dtype, spec.shape, spec.length) for spec in block.tensors]
    own = {spec.name: spec.offset for spec in block.tensors if spec.packing is None}
    places, length = place_tensors(entries, own)
    for spec, place in zip(block.tensors, places, strict=True):
        if spec.offset != place.offset:
            raise ValueError(f"block {block.id} has tensor {spec.name} at {spec.offset} instead of {place.offset}")
    if block.extent.length != max(length, PAGE):
        raise ValueError(f"block {block.id} has an extent of {block.extent.length} bytes, its tensors {length}")


def _check_numbers(block: Block, spec: TensorSpec) -> None:
    if spec.dtype not in NUMBER_BYTES:
        raise ValueError(f"block {block.id} has tensor {spec.name} of dtype {spec.dtype}, which is unknown")
    size = prod(spec.shape) * NUMBER_BYTES[spec.dtype]
    if size > MOST_BYTES:
        raise ValueError(f"block {block.id} has tensor {spec.name} of {size} bytes")
    if spec.packing is not None:
        if len(spec.shape) != 2 or spec.length == 0:
            raise ValueError(f"block {block.id} has tensor {spec.name} encoded, which is no matrix")
    elif spec.length != size or spec.offset % NUMBER_BYTES[spec.dtype]:
        raise ValueError(f"block {block.id} has tensor {spec.name} in {spec.length} bytes, where it takes {size}")


def _check_planes(manifest: Manifest) -> None:
    """First planes lie in the block of a module or an expert; each further plane in a residual right behind it."""
    behind: Block | None = None
    for block in manifest.blocks:
        if block.id.kind == "residual":
            _check_residual(block, behind)
        elif any(spec.packing is not None and spec.packing.plane for spec in block.tensors):
            raise ValueError(f"block {block.id} has a further plane, which belongs into a block of its own")
        behind = block


def _check_residual(block: Block, behind: Block | None) -> None:
    """``behind`` is the block before ``block`` in the manifest: its expert's, or that of the plane before."""
    plane = 0 if behind is None else 1 + max((spec.packing.plane for spec in behind.tensors if spec.packing), default=0)
    if (
        behind is None
        or behind.id.kind == "dense"
        or block.id != BlockId("expert", behind.id.module, behind.id.expert or 0).residual(plane)
        or (block.extent.file, block.resident) != (behind.extent.file, False)
    ):
        raise ValueError(f"block {block.id} does not lie behind its expert")
    before = {spec.name: spec for spec in behind.tensors}
    for spec in block.tensors:
        first = before.get(spec.name)
        if first is None or first.packing is None or spec.packing is None:
            raise ValueError(f"block {block.id} has tensor {spec.name} without the plane before it")
        packing = replace(first.packing, plane=plane)
        if spec != replace(first, offset=spec.offset, length=spec.length, packing=packing):
            raise ValueError(f"block {block.id} has tensor {spec.name} unlike the plane before it")
