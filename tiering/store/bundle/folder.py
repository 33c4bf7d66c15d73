"""The store, the folder of all bundles: locks for its writers, and its room."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ....kernels.io.regular import open_regular
from ....kernels.io.system import SYSTEM
from ...driving.small_files import make_folder
from ...errors import BundleError, ConfigError, FlashFull
from ...units import format_size
from .marks import NAME, is_damaged, is_marked

PARTIAL = ".partial"
"""End of the name of a bundle that is still being written."""

PREFIXES = "prefix"
"""The folder in the store for stored prompts, which have a quota of their own."""

CHATS = "chats"
"""The folder in the store for saved chats, and what was typed."""

SPILLED = "kv"
"""The folder in the store for keys and values of models that run."""

_OTHERS = (PREFIXES, CHATS, SPILLED)


def prepare(store: Path, *, what: str = "store", to_write: bool = True) -> Path:
    """Return the folder ``store``, and make it, for this user only, if it is not there.

    ``what`` says in error messages which folder of the configuration it is. Raises ConfigError if it cannot be used, or
    not be written ``to_write``.
    """
    store = store.expanduser()
    key = "[store] path" if what == "store" else "[store] stripes"
    try:
        if not store.is_dir():  # it may be on a link: it is the user who says where the store is
            make_folder(store, parents=True)
    except OSError as error:
        raise ConfigError(f"the {what} {store} cannot be made: {error.strerror}; choose another {key}") from error
    if to_write and not os.access(store, os.W_OK | os.X_OK):
        raise ConfigError(
            f"the {what} {store} is not writable, and what must be written there is not there yet; choose another {key}"
        )
    return store


def bundles_in(store: Path) -> list[Path]:
    """Return the folders of whole bundles in ``store``, by name, and of those whose manifest alone is damaged. What
    others have put there is none."""
    found = sorted(file.parent for file in store.glob(f"*/{NAME}"))
    return [folder for folder in found if not folder.name.endswith(PARTIAL) and _is_bundle(folder)]


def _is_bundle(folder: Path) -> bool:
    try:
        return folder.name not in _OTHERS and (is_marked(folder) or is_damaged(folder))
    except OSError:  # somebody deletes it, or it may not be read
        return False


@contextmanager
def locked(bundle: Path, *, wait: bool = True) -> Iterator[bool]:
    """Be the only process that writes ``bundle``. Yields True once it is. Without ``wait``, False if another one is.

    Raises BundleError where the lock file is none."""
    # The lock file stays: removing it would let a third process lock a file that the second no longer sees.
    path = bundle.with_name(bundle.name + ".lock")
    try:
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT, 0o600, follow=False)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EISDIR):
            raise BundleError(f"{path} is no lock file ({error.strerror}); remove it") from error
        raise
    owner = os.getpid()
    try:
        yield SYSTEM.lock(descriptor, wait=wait)
    finally:
        if os.getpid() == owner:  # a child that was forked meanwhile has the descriptor too, and would keep the lock
            SYSTEM.unlock(descriptor)
        os.close(descriptor)


def ensure_room(store: Path, needs: Mapping[Path, int], limit: int | None, *, elsewhere: Iterable[Path] = ()) -> None:
    """Raise FlashFull unless each folder of ``needs`` can grow to its bytes, on its drive and within ``limit``.

    ``limit``, in bytes, bounds the store without prompts, and the folders ``elsewhere``, together. The files of an
    interrupted packing count as written. A folder need not be there yet, but its parent must.
    """
    missing = {folder: max(0, total - size_of(folder)) for folder, total in needs.items()}
    drives: dict[int, tuple[Path, int]] = {}
    for folder, size in missing.items():
        place = folder.parent
        first, others = drives.get(os.stat(place).st_dev, (place, 0))
        drives[os.stat(place).st_dev] = first, others + size
    for place, size in drives.values():
        free = shutil.disk_usage(place).free
        if size > free:
            raise FlashFull(
                f"packing needs {format_size(size)} more in {place}, its drive has {format_size(free)} free; "
                f"make room or choose another [store] {'path' if place == store else 'stripes'}"
            )
    total = sum(missing.values())
    used = bundle_bytes(store) + sum(size_of(folder) for folder in elsewhere if not folder.is_relative_to(store))
    if limit is not None and used + total > limit:
        raise FlashFull(
            f"packing needs {format_size(total)} in {store}, which holds {format_size(used)} already and may hold "
            f"{format_size(limit)} ([memory] flash); delete bundles there or raise the limit"
        )


def bundle_bytes(store: Path) -> int:
    """Return the bytes of all files in ``store``, without stored prompts."""
    return size_of(store) - size_of(store / PREFIXES)


def size_of(folder: Path) -> int:
    """Return the bytes of all files below ``folder``, 0 if it is not there. Files removed meanwhile do not count."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total
