"""``penstock inspect``: the content of a bundle."""

from pathlib import Path
from typing import Any

from ...tiering.store.bundle.manifest import Block, Manifest
from ...tiering.store.bundle.manifest_file import read_manifest
from ...tiering.store.bundle.stripes import on_one_drive
from ...tiering.units import format_size
from ..loading.opening import find_bundle
from ..loading.progress import shown
from .console import print_json, quiet_imports
from .contents import AS_IS, shares
from .options import Settings, SourceOptions
from .tables import print_table


def command(source: SourceOptions, settings: Settings) -> None:
    """Show what a packed model holds and where it lies. Reads the manifest only."""
    config = settings.load()
    quiet_imports()
    with shown() as bar:
        folder = find_bundle(source, config, bar)
    manifest = read_manifest(folder)
    if settings.json:
        print_json(describe(manifest) | {"bundle": str(folder), "drives": drives(folder, manifest)})
        return
    print(f"{folder}")
    print(
        f"{manifest.dtype}, format {manifest.codec}, {format_size(manifest.total_bytes)} in {len(manifest.files)} files"
    )
    print(f"checkpoint {manifest.checkpoint}")
    if manifest.drives:
        _print_drives(drives(folder, manifest), manifest.total_bytes)
    _print_blocks(manifest)
    for name, stored in manifest.tied.items():
        print(f"{name} shares the weights of {stored}")
    for note in manifest.notes:
        print(note)


def _print_drives(found: list[dict[str, Any]], total: int) -> None:
    print_table(
        "",
        ["drive", "bytes", "share", "measured", ""],
        [
            (
                drive["folder"],
                format_size(drive["bytes"]),
                f"{drive['bytes'] / max(1, total):.1%}",
                f"{drive['bytes_per_second'] / 1e9:.2f} GB/s",
                _remark(drive),
            )
            for drive in found
        ],
    )


def _print_blocks(manifest: Manifest) -> None:
    """Tables of the blocks by kind, by format and by module."""
    rows = [
        (kind, len(blocks), format_size(sum(_lengths(blocks))), format_size(max(_lengths(blocks), default=0)))
        for kind, blocks in kinds(manifest).items()
    ]
    print_table("", ["blocks", "count", "bytes", "largest"], rows)
    formats = [
        (
            f"{share.format}, {share.planes} planes" if share.planes > 1 else share.format,
            share.matrices,
            format_size(share.bytes),
            f"{share.bits:.2f}",
        )
        for share in shares(manifest)
    ]
    print_table("", ["format", "matrices", "bytes", "bits per weight"], formats)
    modules: dict[str, list[Block]] = {}
    for block in manifest.blocks:
        modules.setdefault(f"{block.id.module or '(small weights)'}", []).append(block)
    places = [
        (name, len(blocks), format_size(sum(_lengths(blocks))), blocks[0].extent.file, blocks[0].extent.offset)
        for name, blocks in modules.items()
    ]
    print_table("", ["module", "blocks", "bytes", "file", "offset"], places)


def kinds(manifest: Manifest) -> dict[str, list[Block]]:
    """The blocks by kind: always in memory ("resident"), dense, expert, and further planes, if there are any."""
    found: dict[str, list[Block]] = {"resident": [], "dense": [], "expert": []}
    for block in manifest.blocks:
        found.setdefault("resident" if block.resident else block.id.kind, []).append(block)
    return found


def drives(folder: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """The drives of a striped bundle: folder, bytes, and the speed by which they were dealt; none for a plain one."""
    places = manifest.places(folder)
    return [
        {
            "folder": str(place),
            "there": place.is_dir(),
            "bytes": size,
            "bytes_per_second": drive.bytes_per_second,
            "same_drive_as": next((str(other) for other in places[:number] if on_one_drive(other, place)), None),
        }
        for number, (place, size, drive) in enumerate(zip(places, manifest.drive_bytes, manifest.drives, strict=False))
    ]


def describe(manifest: Manifest) -> dict[str, Any]:
    """The fields of ``--json``."""
    return {
        "identity": manifest.identity,
        "checkpoint": manifest.checkpoint,
        "dtype": manifest.dtype,
        "format": manifest.codec,
        "bytes": manifest.total_bytes,
        "files": [{"name": file.name, "bytes": file.length, "drive": file.drive} for file in manifest.files],
        "kinds": {
            kind: {"blocks": len(blocks), "bytes": sum(_lengths(blocks)), "largest": max(_lengths(blocks), default=0)}
            for kind, blocks in kinds(manifest).items()
        },
        "formats": [share.to_dict() for share in shares(manifest)],
        "notes": list(manifest.notes),
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
                    {
                        "name": spec.name,
                        "dtype": spec.dtype,
                        "shape": list(spec.shape),
                        "format": spec.packing.format if spec.packing else AS_IS,
                    }
                    for spec in block.tensors
                ],
            }
            for block in manifest.blocks
        ],
    }


def _remark(drive: dict[str, Any]) -> str:
    if not drive["there"]:
        return "not there"
    return f"same drive as {drive['same_drive_as']}: gains nothing" if drive["same_drive_as"] else ""


def _lengths(blocks: list[Block]) -> list[int]:
    return [block.extent.length for block in blocks]
