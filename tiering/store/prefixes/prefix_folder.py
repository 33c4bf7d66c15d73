"""The folder of prefix files: which there are, what each holds, and which go."""

import errno
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import BundleError, FlashFull, PenstockError, PrefixDamaged, PrefixError, PrefixVersionError
from ...prefix.tree import Cut, Record, orphans, record_of
from ..bundle.folder import PARTIAL, locked
from . import prefix_notes as notes
from .prefix_file import PrefixFile, is_abandoned, shorten

SUFFIX = ".kv"
"""What the name of a whole prefix file ends with."""


class PrefixFolder:
    """The files in ``folder``, which other processes change too. Headers are read once, and not at all where the index
    has what they say. For several threads."""

    def __init__(self, folder: Path, *, direct: bool | None = None) -> None:
        self.folder, self._direct = folder, direct
        self._known: dict[str, Record] = notes.read_index(folder)
        self._unusable: dict[str, PrefixError] = {}
        self._scanning = threading.Lock()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """No other process or thread changes the folder meanwhile. Inside, an OSError becomes the FlashFull or the
        PrefixError that says which folder it is, and what to do."""
        try:
            with locked(self.folder / "store"):
                yield
        except OSError as error:
            raise explain(self.folder, error) from error
        except BundleError as error:  # the lock file is none
            raise PrefixError(str(error)) from error

    def records(self) -> list[Record]:
        """What every usable file holds now."""
        with self._scanning:
            sizes = {
                entry.name: status
                for entry, status in self.entries()
                if entry.name.endswith(SUFFIX) and not stat.S_ISDIR(status.st_mode)
            }
            for name in self._known.keys() - sizes.keys():
                del self._known[name]
            for name in sizes.keys() - self._known.keys() - self._unusable.keys():
                self._learn(name)
            return [
                self._known[name].as_of(status.st_size, status.st_mtime_ns)
                for name, status in sorted(sizes.items())
                if name in self._known
            ]

    def entries(self) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
        """All that is in the folder, with its state; that of a link is its own. Raises PrefixError."""
        try:
            listed = [*os.scandir(self.folder)]
        except OSError as error:
            raise explain(self.folder, error) from error
        for entry in listed:
            with suppress(FileNotFoundError):  # another process has removed it meanwhile
                yield entry, entry.stat(follow_symlinks=False)

    def _learn(self, name: str) -> None:
        try:
            with PrefixFile(self.folder / name, direct=self._direct) as file:
                self._known[name] = record_of(name, file.header, file.hashes())
        except (PrefixDamaged, PrefixVersionError) as error:
            self._unusable[name] = error
        except (FileNotFoundError, PrefixError):
            pass  # it may be there, or readable, the next time

    def used_bytes(self) -> int:
        """Bytes that count against the quota: of all files, and of those being written what they will have."""
        return sum(_reserved(entry.name, status.st_size) for entry, status in self.entries())

    def forget(self, names: Iterable[str]) -> None:
        """The index has been wrong about these: their headers say."""
        with self._scanning:
            for name in names:
                self._known.pop(name, None)

    def sweep(self) -> None:
        """Remove what processes that are gone have left, and what nobody can reach. The lock is held."""
        notes.sweep(self.folder)
        for entry, status in list(self.entries()):
            is_partial = entry.name.endswith(PARTIAL) and not stat.S_ISDIR(status.st_mode)
            if is_partial and is_abandoned(self.folder / entry.name):
                os.unlink(entry.path)
        self.cut(Cut(record.name, 0) for record in orphans(self.records()))

    def damaged(self) -> list[Cut]:
        """Files whose header cannot be read, and links and pipes in their place: nobody can use them."""
        return [Cut(name, 0) for name, error in self._unusable.items() if isinstance(error, PrefixDamaged)]

    def cut(self, cuts: Iterable[Cut]) -> int:
        """Shorten and remove files. Returns the bytes that came free. The lock is held."""
        freed = 0
        for name, length in ((cut.name, cut.length) for cut in cuts):
            path = self.folder / name
            with suppress(FileNotFoundError):
                status = path.lstat()
                if not length or not stat.S_ISREG(status.st_mode):
                    path.unlink()
                elif length < status.st_size:
                    shorten(path, length)
                freed += max(0, status.st_size - length)
        return freed

    def add(self, record: Record) -> None:
        """A file of ours is there from now on."""
        with self._scanning:
            self._known[record.name] = record

    def is_unusable(self, name: str) -> bool:
        """Whether the file's header could not be read."""
        return name in self._unusable


def explain(folder: Path, error: OSError) -> PenstockError:
    """The error to raise where ``error`` came of reading or writing in ``folder``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FlashFull(
            f"the drive of {folder} is full, so prompts are not stored; make room there, or: penstock cache prune"
        )
    place = error.filename if isinstance(error.filename, str) else folder
    return PrefixError(f"{place} cannot be used for stored prompts: {error.strerror or error}; see [store] path")


def _reserved(name: str, size: int) -> int:
    """Bytes that a file will have."""
    if not name.endswith(PARTIAL):
        return size
    length = name.removesuffix(PARTIAL).rpartition(".")[2]
    return max(size, int(length) if length.isdigit() else 0)
