"""The folder of prefix files: which there are, what each holds, and which go."""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from ...errors import PrefixDamaged, PrefixError, PrefixVersionError
from ...prefix.tree import Cut, Record, orphans, record_of
from ..bundle.folder import PARTIAL, locked
from . import prefix_notes as notes
from .prefix_file import PrefixFile, is_abandoned

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

    def lock(self) -> AbstractContextManager[bool]:
        """No other process or thread changes the folder meanwhile."""
        return locked(self.folder / "store")

    def records(self) -> list[Record]:
        """What every usable file holds now."""
        with self._scanning:
            sizes = {entry.name: status for entry, status in self.entries() if entry.name.endswith(SUFFIX)}
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
        """All files in the folder, with their state."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process has removed it meanwhile
                    yield entry, entry.stat()

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
        for entry, _ in list(self.entries()):
            if entry.name.endswith(PARTIAL) and is_abandoned(self.folder / entry.name):
                os.unlink(entry.path)
        self.cut(Cut(record.name, 0) for record in orphans(self.records()))

    def damaged(self) -> list[Cut]:
        """Files whose header cannot be read: nobody can use them."""
        return [Cut(name, 0) for name, error in self._unusable.items() if isinstance(error, PrefixDamaged)]

    def cut(self, cuts: Iterable[Cut]) -> int:
        """Shorten and remove files. Returns the bytes that came free. The lock is held."""
        freed = 0
        for name, length in ((cut.name, cut.length) for cut in cuts):
            path = self.folder / name
            with suppress(FileNotFoundError):
                status = path.stat()
                if not length:
                    path.unlink()
                elif length < status.st_size:
                    os.truncate(path, length)
                    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
                freed += max(0, status.st_size - length)
        return freed

    def add(self, record: Record) -> None:
        """A file of ours is there from now on."""
        with self._scanning:
            self._known[record.name] = record

    def is_unusable(self, name: str) -> bool:
        """Whether the file's header could not be read."""
        return name in self._unusable


def _reserved(name: str, size: int) -> int:
    """Bytes that a file will have."""
    if not name.endswith(PARTIAL):
        return size
    length = name.removesuffix(PARTIAL).rpartition(".")[2]
    return max(size, int(length) if length.isdigit() else 0)
