"""``penstock du``: what takes room in the store."""

import shutil

from ...tiering.store.bundle.folder import CHATS, PREFIXES, SPILLED, size_of
from ...tiering.store.bundle.shelf import interrupted, shelved
from ...tiering.units import format_size
from ..machine.drive_speeds import existing
from .console import print_json
from .options import Settings
from .tables import print_table


def command(settings: Settings) -> None:
    """Say what takes room in the store."""
    store = settings.load().store.path
    bundles = shelved(store)
    own = sum(size_of(each.folder) for each in bundles)
    parts = {
        "packed models": own,
        "parts of them on other drives": sum(each.size for each in bundles) - own,
        "left by interrupted packings": sum(map(size_of, interrupted(store))),
        "stored prompts": size_of(store / PREFIXES),
        "keys and values": size_of(store / SPILLED),
        "saved chats": size_of(store / CHATS),
    }
    within = sum(size for name, size in parts.items() if "other drives" not in name)
    parts["notes"] = max(0, size_of(store) - within)
    free = shutil.disk_usage(existing(store)).free
    if settings.json:
        print_json({"store": str(store), "bytes": parts, "free": free})
        return
    rows = [(name, format_size(size)) for name, size in parts.items() if size]
    print_table(f"{store}: {format_size(sum(parts.values()))}", ["what", "size"], [*rows, ("free", format_size(free))])
