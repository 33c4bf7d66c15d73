"""The room for a new bundle on the store's drives."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ...tiering.store.bundle.folder import bundle_bytes, size_of
from ...tiering.store.bundle.stripes import parts_of
from ..machine.drive_speeds import existing


def flash_free(places: Sequence[Path], limit: int | None, shares: Sequence[float] | None = None) -> int:
    """Bytes that a new bundle may take in the store, the first of ``places``, and its stripes, the others, which need
    not exist yet; with each taking its share of them, if ``shares`` are given. All bundles together take at most
    ``limit`` bytes, if that is given."""
    free: dict[int, int] = {}
    taken: dict[int, float] = {}
    for place, share in zip(places, shares or [1.0] * len(places), strict=True):
        folder = existing(place)
        device = folder.stat().st_dev
        free[device] = shutil.disk_usage(folder).free
        taken[device] = taken.get(device, 0.0) + share
    total = sum(taken.values())
    room = sum(free.values())
    if shares is not None:
        room = min(room, *(int(free[device] * total / taken[device]) for device in free))
    if limit is None:
        return room
    store = places[0]
    elsewhere = [part for stripe in places[1:] for part in parts_of(store, stripe) if not part.is_relative_to(store)]
    return max(0, min(room, limit - bundle_bytes(store) - sum(map(size_of, elsewhere))))
