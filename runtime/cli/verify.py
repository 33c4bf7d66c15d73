"""``penstock verify``: read every block of a bundle and check it."""

from typing import TYPE_CHECKING, Annotated

import typer

from ...tiering.errors import BundleError, PenstockError
from ...tiering.units import format_size
from ..loading.opening import find_bundle
from ..loading.progress import shown
from .console import fail, print_json, quiet_libraries
from .options import Settings, SourceOptions

if TYPE_CHECKING:
    from ...tiering.progress import Progress
    from ...tiering.store.bundle.reader import Bundle


def command(
    source: SourceOptions,
    settings: Settings,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode everything too: vet a bundle that comes from somebody else.")
    ] = False,
) -> None:
    """Check every block of a packed model against its checksum; exit code 1 if one is damaged."""
    config = settings.load()
    quiet_libraries()
    from ...tiering.store.bundle.reader import Bundle

    with shown() as bar:
        folder = find_bundle(source, config, bar)
        with Bundle.open(folder, direct=config.direct) as bundle:
            damaged: list[PenstockError] = [*bundle.verify(bar)]
            manifest = bundle.manifest
            if deep and not damaged:
                damaged += _look_deep(bundle, source.trust_remote_code, bar)
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


def _look_deep(bundle: "Bundle", trust_remote_code: bool, progress: "Progress") -> list[PenstockError]:
    from ..loading.deep_check import check_deep

    try:
        return [*check_deep(bundle, trust_remote_code=trust_remote_code, progress=progress)]
    except BundleError as error:
        return [error]
