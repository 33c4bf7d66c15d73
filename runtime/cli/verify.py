"""``penstock verify``: read every block of a bundle and check it."""

import typer

from ...tiering.units import format_size
from ..loading.opening import find_bundle
from ..loading.progress import shown
from .console import fail, print_json, quiet_libraries
from .options import Settings, SourceOptions


def command(source: SourceOptions, settings: Settings) -> None:
    """Check every block of a packed model against its checksum; exit code 1 if one is damaged."""
    config = settings.load()
    quiet_libraries()
    from ...tiering.store.bundle.reader import Bundle

    with shown() as bar:
        folder = find_bundle(source, config, bar)
        with Bundle.open(folder, direct=config.direct) as bundle:
            damaged = bundle.verify(bar)
            manifest = bundle.manifest
    if settings.json:
        print_json(
            {
                "bundle": str(folder),
                "intact": not damaged,
                "blocks": len(manifest.blocks),
                "bytes": manifest.total_bytes,
                "damaged": [str(error) for error in damaged],
            }
        )
    elif not damaged:
        print(f"{folder}: all {len(manifest.blocks)} blocks intact, {format_size(manifest.total_bytes)}")
    if damaged:
        if not settings.json:
            for error in damaged:
                fail(error)
        raise typer.Exit(1)
