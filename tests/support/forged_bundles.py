"""Bundles whose author recomputed every checksum after changing their bytes: only what the bytes mean is wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import xxhash

from penstock.tiering.store.bundle.manifest import Block, TensorSpec, dump
from penstock.tiering.store.bundle.manifest_file import parse

Change = Callable[[TensorSpec, bytearray], None]
"""Changes the bytes of a tensor in place, as many as before."""


def forge(folder: Path, change: Change, wanted: Callable[[Block, TensorSpec], bool]) -> list[tuple[Block, TensorSpec]]:
    """Apply ``change`` to each tensor of the bundle in ``folder`` that is ``wanted``. Returns what was changed."""
    path = folder / "manifest.json"
    manifest = parse(path.read_text(), str(path))
    blocks, changed = [], []
    for block in manifest.blocks:
        data = folder / manifest.files[block.extent.file].name
        content = bytearray(data.read_bytes())
        for spec in block.tensors:
            if wanted(block, spec):
                at = block.extent.offset + spec.offset
                part = content[at : at + spec.length]
                change(spec, part)
                assert len(part) == spec.length
                content[at : at + spec.length] = part
                changed.append((block, spec))
        data.write_bytes(content)
        checksum = xxhash.xxh3_64_hexdigest(bytes(content[block.extent.offset : block.extent.end]))
        blocks.append(replace(block, checksum=checksum))
    path.write_text(dump(replace(manifest, blocks=tuple(blocks))))
    return changed
