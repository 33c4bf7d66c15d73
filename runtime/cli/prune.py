"""``penstock prune``: removes what interrupted packings have left, and models that were not used for long."""

import time
from typing import Annotated

import typer

from ...tiering.store.bundle.shelf import choose_old, shelved, take_away, take_interrupted
from ...tiering.units import format_size, parse_size
from .ages import parse_age
from .console import print_json
from .options import Settings


def command(
    settings: Settings,
    to: Annotated[
        str | None, typer.Option("--to", metavar="SIZE", help="Models, until so much is left: longest unused first.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help='Models not used for "12h", "7d", "4w".')
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which models would go.")] = False,
) -> None:
    """Remove what interrupted packings have left; with --to or --older-than packed models, too. Only what penstock
    surely wrote goes: damaged bundles, links, and bundles with files of others stay; see penstock rm."""
    size = None if to is None else parse_size(to)
    before = None if older_than is None else time.time() - parse_age(older_than)
    config = settings.load()
    store = config.store.path
    gone = choose_old(shelved(store), to=size, before=before)
    freed = 0 if dry_run else take_interrupted(store, config.store.stripes) + sum(map(take_away, gone))
    names = [each.name for each in gone]
    if settings.json:
        print_json({"store": str(store), "removed": names, "freed": freed})
    elif dry_run:
        said = ", ".join(names) or "no model"
        print(f"{said} would go, {format_size(sum(each.size for each in gone))}")
    else:
        print(f"{', '.join([*names, format_size(freed)])} came free")
