"""``penstock verify``: read every block of a bundle and check it."""

from typing import TYPE_CHECKING, Annotated

import typer

from ...tiering.errors import BundleError, PenstockError
from ...tiering.units import format_size
from ..loading.opening import find_bundle
from ..loading.progress import shown
from .console import fail, importing, print_json, quiet_imports
from .options import Settings, SourceOptions

if TYPE_CHECKING:
    from pathlib import Path

    from ...tiering.progress import Progress
    from ..config.config import Config


def command(
    source: SourceOptions,
    settings: Settings,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode everything too: vet a bundle that comes from somebody else.")
    ] = False,
) -> None:
    """Check every block of a packed model against its checksum; exit code 1 if one is damaged."""
    config = settings.load()
    quiet_imports()
    from ...tiering.store.bundle.data_files import DataFiles

    with shown() as bar:
        folder = find_bundle(source, config, bar)
        with DataFiles.open(folder, direct=config.direct) as files:
            damaged: list[PenstockError] = [*files.verify(bar)]
            manifest = files.manifest
        if deep and not damaged:
            damaged += _look_deep(folder, config, source.trust_remote_code, bar)
    if settings.json:
        print_json(
            {
                "bundle": str(folder),
                "intact": not damaged,
                "blocks": len(manifest.blocks),
                "bytes": manifest.total_bytes,
                "damaged": [str(error) for error in damaged],
                "deep": deep,
            }
        )
    elif not damaged:
        finite = ", every number finite" if deep else ""
        print(f"{folder}: all {len(manifest.blocks)} blocks intact{finite}, {format_size(manifest.total_bytes)}")
    if damaged:
        if not settings.json:
            for error in damaged:
                fail(error)
        raise typer.Exit(1)


def _look_deep(folder: "Path", config: "Config", trust_remote_code: bool, progress: "Progress") -> list[PenstockError]:
    with importing():
        from ...tiering.store.bundle.reader import Bundle
        from ..loading.deep_check import check_deep

    with Bundle.open(folder, direct=config.direct) as bundle:
        try:
            return [*check_deep(bundle, trust_remote_code=trust_remote_code, progress=progress)]
        except BundleError as error:
            return [error]
