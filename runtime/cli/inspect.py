"""``penstock inspect``: what a bundle holds."""

from typing import Any

from ...tiering.store.manifest import Block, Manifest
from ...tiering.units import format_size
from ..progress import shown
from .console import print_json, print_table, quiet_libraries
from .opening import find_bundle, is_bundle, read_manifest
from .options import Settings, Source


def command(source: Source, settings: Settings) -> None:
    """Show what a packed model holds and where it lies. Reads the manifest only."""
    config = settings.load()
    if not is_bundle(source.model):
        quiet_libraries()
    with shown() as bar:
        folder = find_bundle(source, config, bar)
    manifest = read_manifest(folder)
    if settings.json:
        print_json(describe(manifest) | {"bundle": str(folder)})
        return
    print(f"{folder}")
    print(
        f"{manifest.dtype}, format {manifest.codec}, {format_size(manifest.total_bytes)} in {len(manifest.files)} files"
    )
    print(f"checkpoint {manifest.checkpoint}")
    rows = [
        (kind, len(blocks), format_size(sum(_lengths(blocks))), format_size(max(_lengths(blocks), default=0)))
        for kind, blocks in kinds(manifest).items()
    ]
    print_table("", ["blocks", "count", "bytes", "largest"], rows)
    modules: dict[str, list[Block]] = {}
    for block in manifest.blocks:
        modules.setdefault(f"{block.id.module or '(small weights)'}", []).append(block)
    print_table(
        "",
        ["module", "blocks", "bytes", "file", "offset"],
        [
            (name, len(blocks), format_size(sum(_lengths(blocks))), blocks[0].extent.file, blocks[0].extent.offset)
            for name, blocks in modules.items()
        ],
    )
    for name, stored in manifest.tied.items():
        print(f"{name} shares the weights of {stored}")


def kinds(manifest: Manifest) -> dict[str, list[Block]]:
    """The blocks by what becomes of them: always in memory, dense, expert."""
    found: dict[str, list[Block]] = {"resident": [], "dense": [], "expert": []}
    for block in manifest.blocks:
        found["resident" if block.resident else block.id.kind].append(block)
    return found


def describe(manifest: Manifest) -> dict[str, Any]:
    """The fields of ``--json``."""
    return {
        "identity": manifest.identity,
        "checkpoint": manifest.checkpoint,
        "dtype": manifest.dtype,
        "format": manifest.codec,
        "bytes": manifest.total_bytes,
        "files": [{"name": file.name, "bytes": file.length} for file in manifest.files],
        "kinds": {
            kind: {"blocks": len(blocks), "bytes": sum(_lengths(blocks)), "largest": max(_lengths(blocks), default=0)}
            for kind, blocks in kinds(manifest).items()
        },
        "tied": dict(manifest.tied),
        "blocks": [
            {
                "id": str(block.id),
                "kind": block.id.kind,
                "module": block.id.module,
                "part": block.id.part,
                "resident": block.resident,
                "file": manifest.files[block.extent.file].name,
                "offset": block.extent.offset,
                "bytes": block.extent.length,
                "checksum": block.checksum,
                "tensors": [
                    {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in block.tensors
                ],
            }
            for block in manifest.blocks
        ],
    }


def _lengths(blocks: list[Block]) -> list[int]:
    return [block.extent.length for block in blocks]
