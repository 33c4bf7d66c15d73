"""``penstock rm``: removes packed models."""

from typing import Annotated

import typer

from ...tiering.store.bundle.shelf import find_shelved, take_away
from ...tiering.units import format_size
from .console import print_json
from .options import Settings


def command(
    settings: Settings,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="As penstock ls names them, or where they came from.")
    ],
) -> None:
    """Remove packed models. What they were packed from stays, and so do stored prompts: see penstock cache prune.
    Of a bundle on a link only the link goes. One with files of others in it is refused."""
    store = settings.load().store.path
    found = {bundle.folder: bundle for name in names for bundle in [find_shelved(store, name)]}
    freed = sum(take_away(bundle) for bundle in found.values())
    if settings.json:
        print_json({"store": str(store), "removed": [bundle.name for bundle in found.values()], "freed": freed})
    else:
        print(f"{', '.join(bundle.name for bundle in found.values())} removed, {format_size(freed)} came free")
