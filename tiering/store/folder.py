"""The store: the folder in which bundles lie; who may write to it, and how much room it has."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError, FlashFull
from ..units import format_size

PARTIAL = ".partial"
"""What the name of a bundle that is still being written ends with."""


def prepare(store: Path) -> Path:
    """The folder ``store``, made for this user only if it was not there. Raises ConfigError when it cannot be used."""
    store = store.expanduser()
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the store {store} cannot be made: {error.strerror}; choose another [store] path") from error
    if not os.access(store, os.W_OK | os.X_OK):
        raise ConfigError(
            f"the store {store} is not writable; choose another [store] path, or name a bundle in it as the model"
        )
    return store


@contextmanager
def locked(bundle: Path) -> Iterator[None]:
    """Be the only process that writes ``bundle``; waits while another one does."""
    # The lock file stays: removing it would let a third process lock a file that the second no longer sees.
    descriptor = os.open(bundle.with_name(bundle.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def ensure_room(bundle: Path, total: int, limit: int | None) -> None:
    """Raise FlashFull unless ``bundle`` can grow to ``total`` bytes: on its drive, and with all that lies in the store
    already within ``limit`` bytes. What an interrupted packing of it has written counts as there."""
    store = bundle.parent
    there = _size(bundle.with_name(bundle.name + PARTIAL))
    missing = max(0, total - there)
    status = os.statvfs(store)
    free = status.f_bavail * status.f_frsize
    if missing > free:
        raise FlashFull(
            f"packing needs {format_size(missing)} more in {store}, its drive has {format_size(free)} free; "
            "make room or choose another [store] path"
        )
    if limit is not None and (used := _size(store)) + missing > limit:
        raise FlashFull(
            f"packing needs {format_size(missing)} in {store}, which holds {format_size(used)} already and may hold "
            f"{format_size(limit)} ([memory] flash); delete bundles there or raise the limit"
        )


def sync(folder: Path) -> None:
    """Make names made or renamed in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """Replace the file ``path`` by ``text`` so that a crash leaves the old content or the new."""
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync(path.parent)


def _size(folder: Path) -> int:
    """Bytes of the files below ``folder``; 0 when it is not there. Files that go while we look do not count."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total
