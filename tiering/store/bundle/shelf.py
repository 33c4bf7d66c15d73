"""The bundles of a store as people name them, and what removing them takes."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import BundleError
from .folder import PARTIAL, bundles_in, locked, size_of
from .manifest_file import read_manifest
from .marks import NAME, is_marked, is_packing, strange_in
from .origin import read_origin
from .stripes import remove, sweep


@dataclass(frozen=True, slots=True)
class Shelved:
    """A bundle. ``name`` says its model and format, and is that of no other bundle of the store."""

    folder: Path
    name: str
    source: str
    format: str
    size: int
    """Bytes of all its files, on all drives."""
    used: float
    """Seconds since 1970."""
    elsewhere: tuple[str, ...] = ()
    """Folders on other drives that hold a part of it."""
    sure: bool = True
    """Whether its manifest shows that penstock wrote it, and all of it lies here: what is not goes only by name."""


def shelved(store: Path) -> list[Shelved]:
    """The whole bundles of ``store``, the last used first. One whose manifest is damaged is there too."""
    found = [_look(folder) for folder in bundles_in(store)]
    count = Counter(each.name for each in found)
    named = [
        each if count[each.name] == 1 else replace(each, name=f"{each.name}:{each.folder.name[-8:]}") for each in found
    ]
    return sorted(named, key=lambda each: -each.used)


def _look(folder: Path) -> Shelved:
    try:
        manifest = read_manifest(folder)
        form = manifest.codec
        elsewhere = tuple(drive.folder for drive in manifest.drives[1:])
    except BundleError:
        form, elsewhere = "damaged", ()
    origin = read_origin(folder)
    size = size_of(folder) + sum(size_of(Path(part)) for part in elsewhere)
    name = _short(origin.source) or folder.name.rpartition("-")[0] or folder.name
    name = f"{name}:{form.replace(' ', '')}"
    sure = is_marked(folder) and not folder.is_symlink() and strange_in(folder) is None
    return Shelved(folder, name, origin.source, form, size, origin.used, elsewhere, sure)


def _short(source: str) -> str:
    """The last part of a hub id or path, without the ending of a file."""
    path = Path(source)
    return path.stem if path.suffix == ".gguf" else path.name


def find_shelved(store: Path, wanted: str) -> Shelved:
    """The bundle that is called ``wanted``: its name, its model, where it came from, or its folder. Raises
    BundleError."""
    among = shelved(store)
    path = os.path.abspath(os.path.expanduser(wanted))
    found = [each for each in among if wanted in (each.name, each.folder.name) or path == str(each.folder)] or [
        each for each in among if wanted in (each.source, each.name.partition(":")[0]) or path == each.source
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise BundleError(f"{wanted} is packed more than once; name one: {', '.join(each.name for each in found)}")
    raise BundleError(f"nothing in {store} is called {wanted}; penstock ls names what is there")


def take_away(bundle: Shelved) -> int:
    """Remove ``bundle``; of one on a link the link. Models that are loaded from it go on. Returns the bytes that came
    free. Raises BundleError if a process writes it, or something in it is not of a bundle."""
    if bundle.folder.is_symlink():
        bundle.folder.unlink()
        return 0
    with locked(bundle.folder, wait=False) as mine:
        if not mine:
            raise BundleError(f"{bundle.folder} is being written by another process; try again later")
        if (strange := strange_in(bundle.folder)) is not None:
            path = bundle.folder / strange
            raise BundleError(f"{path} is not of the bundle; move it elsewhere, then remove the bundle")
        remove(bundle.folder, bundle.elsewhere)
        (bundle.folder / NAME).unlink(missing_ok=True)  # from here on it is no bundle
        shutil.rmtree(bundle.folder)
    return bundle.size


def choose_old(bundles: Sequence[Shelved], *, to: int | None, before: float | None) -> list[Shelved]:
    """Those of ``bundles`` that go, the longest unused first: what was not used since ``before``, and what is over
    ``to`` bytes in all. What is not surely penstock's stays, and does not count."""
    known = [each for each in bundles if each.sure]
    left, gone = sum(each.size for each in known), []
    for each in sorted(known, key=lambda each: each.used):
        if (before is not None and each.used < before) or (to is not None and left > to):
            gone.append(each)
            left -= each.size
    return gone


def interrupted(store: Path) -> list[Path]:
    """What interrupted packings have left, and nobody writes now."""
    found = []
    for folder in filter(is_packing, sorted(store.glob(f"*{PARTIAL}"))):
        with locked(folder.with_name(folder.name.removesuffix(PARTIAL)), wait=False) as mine:
            if mine and folder.is_dir():
                found.append(folder)
    return found


def take_interrupted(store: Path, stripes: Iterable[Path]) -> int:
    """Remove what interrupted packings have left. Returns the bytes that came free."""
    freed = 0
    for folder in interrupted(store):
        with locked(folder.with_name(folder.name.removesuffix(PARTIAL)), wait=False) as mine:
            if mine:
                freed += size_of(folder)
                shutil.rmtree(folder, ignore_errors=True)
    sweep(store, stripes)
    return freed


def when(used: float) -> str:
    """A day, for people."""
    return time.strftime("%Y-%m-%d", time.localtime(used))
