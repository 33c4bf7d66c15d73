"""SHA-256 of a checkpoint's content, remembered in the store for files that have not changed since."""

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ....tiering.driving.small_files import read_small, write_durably
from ....tiering.driving.strict_json import parse_json, text
from ....tiering.errors import BundleError, CheckpointError, FlashFull
from ....tiering.progress import Progress, Quiet
from ....tiering.store.bundle.folder import locked
from ....tiering.units import MiB
from .source_file import SourceFile

_CACHE = "digests.json"
_REMEMBERED = 4096
_LARGEST = 32 << 20
"""Most bytes of what is remembered: 4096 of the longest paths take 17 million."""
_STEP = 1 * MiB
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def digest_files(files: Sequence[Path], store: Path, progress: Progress | None = None) -> str:
    """SHA-256 over names and content of ``files``; what was read before is looked up in ``store``.

    Raises CheckpointError when a file cannot be read.
    """
    cache = store / _CACHE
    keys = {file: _key(file) for file in files}
    known = _load(cache)
    fresh = [file for file in files if keys[file] not in known]
    if fresh:
        found = dict(zip((keys[file] for file in fresh), _digest_all(fresh, progress or Quiet()), strict=True))
        known |= found
        _remember(cache, found)
    return _together((file.name, known[keys[file]]) for file in files)


def known_digest(files: Sequence[Path], store: Path) -> str | None:
    """What ``digest_files`` gives, if each of ``files`` was read before, and has the size, time and inode that it had
    then; else None. Nothing of them is read. Raises CheckpointError when a file cannot be read."""
    known = _load(store / _CACHE)
    digests = [(file.name, known.get(_key(file))) for file in files]
    found = [(name, digest) for name, digest in digests if digest is not None]
    return _together(found) if len(found) == len(files) else None


def _together(digests: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over names of files and their digests."""
    return hashlib.sha256(json.dumps([*map(list, digests)]).encode()).hexdigest()


def _remember(cache: Path, found: dict[str, str]) -> None:
    """Add what was ``found`` to ``cache``, unless the store is read-only: then it is found again each time."""
    try:
        with locked(cache):
            merged = _load(cache) | found
            write_durably(cache, json.dumps({key: merged[key] for key in list(merged)[-_REMEMBERED:]}, indent=0))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FlashFull(
                f"the drive of {cache.parent} is full; make room there, or choose another [store] path"
            ) from error
        if error.errno not in _READ_ONLY:
            raise BundleError(
                f"{error.filename or cache} cannot be written: {error.strerror}; see [store] path"
            ) from error


def _digest_all(files: Sequence[Path], progress: Progress) -> list[str]:
    """The files' digests, several at a time: hashing is slower than the drive."""
    progress.start("checking the checkpoint", sum(file.stat().st_size for file in files))
    lock, stop = threading.Lock(), threading.Event()

    def report(n: int) -> bool:
        with lock:
            progress.advance(n)
        return not stop.is_set()

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), "penstock-digest") as pool:
        try:
            digests = list(pool.map(lambda file: _digest(file, report), files))
        except BaseException:
            stop.set()
            raise
    progress.finish()
    return digests


def _digest(path: Path, go_on: Callable[[int], bool]) -> str:
    digest = hashlib.sha256()
    file = SourceFile(path)
    try:
        buffer = memoryview(bytearray(min(_STEP, max(1, file.length))))
        done = 0
        while done < file.length:
            view = buffer[: min(len(buffer), file.length - done)]
            file.read(done, view)
            digest.update(view)
            done += len(view)
            if not go_on(len(view)):
                break
    finally:
        file.close()
    return digest.hexdigest()


def _key(file: Path) -> str:
    """What changes when the file does, short of reading it."""
    try:
        status = file.stat()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    return f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def _load(cache: Path) -> dict[str, str]:
    """What is remembered; nothing if the cache is not there or not readable, since it can be made again."""
    try:
        known = parse_json(read_small(cache, _LARGEST, follow=False))
        return {key: text(value, "[0-9a-f]{64}") for key, value in known.items()} if isinstance(known, dict) else {}
    except (OSError, ValueError):
        return {}
