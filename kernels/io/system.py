"""Calls that every system has in its own way: posix.py for Linux and macOS, windows.py for Windows.

Where a system lacks one, anywhere.py has what stands for it, and nothing else changes.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Protocol


class System(Protocol):
    """The calls. Paths are as ``os.open`` takes them; descriptors are open files. All raise OSError."""

    def open_file(self, path: str | os.PathLike[str], flags: int, mode: int, *, follow: bool) -> int:
        """Open a file as ``os.open`` does, for this process and none that it starts. Returns the descriptor.

        Nothing waits, even if it is a pipe. Without ``follow`` a link is an error, ELOOP.
        """

    def open_direct(self, path: str | os.PathLike[str], flags: int, mode: int, *, follow: bool) -> int:
        """As ``open_file``, past the page cache. EOPNOTSUPP where the system has no such mode."""

    def read_at(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill ``buffers`` from ``offset`` on. Returns the bytes read, 0 at the end of the file."""

    def write_at(self, descriptor: int, data: memoryview | bytes, offset: int) -> int:
        """Write ``data`` at ``offset``. Returns the bytes written."""

    def reserve(self, descriptor: int, offset: int, length: int) -> None:
        """Reserve ``length`` bytes of the file at ``offset``. Existing bytes stay."""

    def is_foreign(self, status: os.stat_result) -> bool:
        """Return whether a file with this ``status`` is another user's, or others may write it."""

    def set_mode(self, descriptor: int, mode: int) -> None:
        """Give a file of this user ``mode``, whatever the umask, where files have modes."""

    def expect_no_order(self, descriptor: int) -> None:
        """Ask the system to read nothing ahead."""

    def keep_uncached(self, descriptor: int) -> None:
        """Ask the system to keep nothing of the file in its cache, where it can be asked once for all."""

    def expect(self, descriptor: int, offset: int, length: int) -> None:
        """Ask the system to read ``length`` bytes into its cache."""

    def drop_cached(self, descriptor: int, offset: int, length: int) -> None:
        """Drop ``length`` bytes from the cache, all from ``offset`` on if 0. Where the system cannot, they age."""

    def sync_data(self, descriptor: int) -> None:
        """Make the written bytes durable, with the metadata that is needed to read them."""

    def sync_folder(self, folder: str | os.PathLike[str]) -> None:
        """Make the names in ``folder`` durable."""

    def lock(self, descriptor: int, *, wait: bool) -> bool:
        """Lock the open file for this descriptor alone, until it is closed.

        Returns False if it is locked and we do not ``wait``.
        """

    def unlock(self, descriptor: int) -> None:
        """Give back the lock of the open file, also where other processes have the descriptor."""

    def name_drive(self, folder: str | os.PathLike[str]) -> str:
        """Name the file system of ``folder``, for as long as it is there."""


SYSTEM: System
"""The calls of this system."""

if importlib.util.find_spec("fcntl") is not None:
    from . import posix

    SYSTEM = posix
else:
    from . import windows

    SYSTEM = windows
