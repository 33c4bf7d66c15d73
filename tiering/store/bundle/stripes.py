"""Stripes, the other drives of a store: the parts of its bundles there, and the parts that deleted bundles have left.

The part of bundle ``B`` in the stripe ``S`` is the folder ``S/B.ID``. ID is drawn once for a store and kept in it, so
that several stores may share a stripe, and a store may be moved.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...driving.small_files import read_small, write_durably
from ...errors import BundleError, ConfigError
from .folder import PARTIAL, locked, prepare

_ID = "store.id"
_LENGTH = 16
"""Characters of a store's ID."""


def prepare_stripes(store: Path, stripes: Iterable[Path]) -> tuple[Path, ...]:
    """Return the folders ``stripes``, and make those that are not there. Raises ConfigError if one cannot be used, is
    named twice, or is ``store`` itself."""
    ready = [store]
    for stripe in stripes:
        folder = prepare(stripe.absolute(), what="stripe")
        if twin := next((known for known in ready if known.samefile(folder)), None):
            raise ConfigError(
                f"the stripe {folder} is the same folder as {twin}; name folders on other drives in [store] stripes"
            )
        ready.append(folder)
    return tuple(ready[1:])


def part_of(bundle: Path, stripe: Path) -> Path:
    """Return the folder in ``stripe`` for its part of ``bundle``."""
    return stripe / f"{bundle.name}.{_identity(bundle.parent)}"


def parts_of(store: Path, stripe: Path) -> list[Path]:
    """Return the parts in ``stripe`` of bundles of ``store``. Writes nothing."""
    return sorted(stripe.glob(f"*.{_identity(store)}")) if (store / _ID).is_file() else []


def sweep(store: Path, stripes: Iterable[Path]) -> None:
    """Remove from ``stripes`` the parts of bundles that are no longer in ``store``."""
    for part in [part for stripe in stripes for part in parts_of(store, stripe)]:
        bundle = store / part.stem
        with locked(bundle, wait=False) as mine:
            # Neither finished nor begun: the bundle's own folder is made before its parts.
            if mine and not bundle.exists() and not bundle.with_name(bundle.name + PARTIAL).exists():
                shutil.rmtree(part, ignore_errors=True)


def remove(bundle: Path, folders: Sequence[str]) -> None:
    """Remove the parts of ``bundle`` among ``folders``, if they can be reached."""
    for folder in map(Path, folders):
        if folder.name == part_of(bundle, folder.parent).name:
            shutil.rmtree(folder, ignore_errors=True)


def absent(bundle: Path, place: Path) -> BundleError:
    """Return the error for ``place``, a part of ``bundle``, that is not there."""
    return BundleError(
        f"{bundle} has a part of its blocks in {place}, which is not there; mount that drive, "
        "or delete the bundle and pack again"
    )


def drive_under(folder: Path, devices: Path = Path("/sys/dev/block")) -> str:
    """Return a name for the drive that holds ``folder``. Partitions of a drive have the same name."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    known = devices / number
    if not known.exists():
        return number  # not a block device: a file system in memory, over the network, or of several drives
    place = known.resolve()
    return str(place.parent if (place / "partition").exists() else place)


def on_one_drive(one: Path, other: Path) -> bool:
    """Return whether both folders are there, on the same drive."""
    return one.is_dir() and other.is_dir() and drive_under(one) == drive_under(other)


def _identity(store: Path) -> str:
    path = store / _ID
    with locked(path):
        if (known := _read_identity(path)) is None:
            known = secrets.token_hex(8)
            try:
                write_durably(path, known)
            except OSError as error:
                raise BundleError(f"{path} cannot be written: {error.strerror or error}; see [store] path") from error
        return known


def _read_identity(path: Path) -> str | None:
    try:
        raw = read_small(path, _LENGTH, follow=False)
    except OSError:
        return None
    return raw.decode() if re.fullmatch(b"[0-9a-f]{16}", raw) else None
