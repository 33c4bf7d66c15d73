"""System calls that only some systems have, with a substitute for the others.

Linux has them all, macOS lacks most. Where one is missing, files are read and written through the page cache, and
nothing else changes.
"""

import errno
import os

try:
    import fcntl
except ImportError as error:
    raise ImportError("Penstock reads, writes and locks files as POSIX has it: on Windows, run it in WSL 2") from error

from .regular import open_regular

_ZEROS = bytes(1 << 20)


def open_direct(path: str | os.PathLike[str], flags: int, mode: int | None = None, *, follow: bool = True) -> int:
    """Open ``path`` past the page cache, as ``open_regular`` does.

    Returns the descriptor. Raises OSError, EOPNOTSUPP where the system has no such mode.
    """
    if not hasattr(os, "O_DIRECT"):
        raise OSError(errno.EOPNOTSUPP, "this system has no direct I/O", str(path))
    return open_regular(path, flags | os.O_DIRECT, mode, follow=follow)


def expect_no_order(descriptor: int) -> None:
    """Ask the system to read nothing ahead."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def expect(descriptor: int, offset: int, length: int) -> None:
    """Ask the system to read ``length`` bytes into the page cache."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)


def drop_cached(descriptor: int, offset: int, length: int) -> None:
    """Drop ``length`` bytes from the page cache, all from ``offset`` on if 0. Where the system cannot, they age."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def reserve(descriptor: int, offset: int, length: int) -> None:
    """Reserve ``length`` bytes of the file at ``offset``. Raises OSError where the file system cannot.

    Existing bytes stay. Without the system call, bytes past the end of the file are written as zeros.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, offset, length)
        return
    at, end = max(offset, os.fstat(descriptor).st_size), offset + length
    while at < end:
        at += os.pwrite(descriptor, _ZEROS[: end - at], at)


def sync_data(descriptor: int) -> None:
    """Make the written bytes durable, with the metadata that is needed to read them. Raises OSError."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    elif hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync leaves bytes in the drive's own cache
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock the open file for this descriptor alone, until it is closed.

    Returns False if it is locked and we do not wait.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Give back the lock of the open file, also where other processes have the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
