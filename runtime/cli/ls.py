"""``penstock ls``: the packed models."""

from datetime import datetime

from ...tiering.store.bundle.origin import CLASS_FILE
from ...tiering.store.bundle.shelf import Shelved, interrupted, shelved, when
from ...tiering.units import format_size
from .console import print_json, say
from .options import Settings
from .tables import print_table


def command(settings: Settings) -> None:
    """List the packed models, the last used first."""
    store = settings.load().store.path
    found = shelved(store)
    if settings.json:
        print_json({"store": str(store), "models": [_described(each) for each in found]})
        return
    rows = [
        (each.name, format_size(each.size), when(each.used), _kind(each), each.source or each.folder.name)
        for each in found
    ]
    print_table(f"{store}", ["name", "size", "last used", "kind", "from"], rows)
    if left := interrupted(store):
        say(f"penstock: interrupted packings have left {', '.join(each.name for each in left)}; penstock prune")


def _kind(bundle: Shelved) -> str:
    return "wrapped" if (bundle.folder / "model" / CLASS_FILE).is_file() else "packed"


def _described(bundle: Shelved) -> dict[str, object]:
    """The fields of ``--json``."""
    return {
        "name": bundle.name,
        "source": bundle.source or None,
        "format": bundle.format,
        "bytes": bundle.size,
        "used": datetime.fromtimestamp(bundle.used).astimezone().isoformat(timespec="seconds"),
        "kind": _kind(bundle),
        "folder": str(bundle.folder),
    }
