"""Calls that only some systems have, and what stands for them on the others (macOS lacks most).

Linux has them all. Where one is missing, files are read and written through the page cache, and nothing else changes.
"""

import errno
import os

try:
    import fcntl
except ImportError as error:
    raise ImportError("Penstock reads, writes and locks files as POSIX has it: on Windows, run it in WSL 2") from error

_ZEROS = bytes(1 << 20)


def open_direct(path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> int:
    """A descriptor of ``path`` past the page cache. Raises OSError: EOPNOTSUPP where the system has no such thing."""
    if not hasattr(os, "O_DIRECT"):
        raise OSError(errno.EOPNOTSUPP, "this system has no direct I/O", str(path))
    return os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC, mode)


def expect_no_order(descriptor: int) -> None:
    """Have the system read nothing ahead."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def expect(descriptor: int, offset: int, length: int) -> None:
    """Have ``length`` bytes read into the page cache."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)


def drop_cached(descriptor: int, offset: int, length: int) -> None:
    """Have the page cache forget ``length`` bytes; 0 for all from ``offset`` on. Where it cannot, they age."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def reserve(descriptor: int, offset: int, length: int) -> None:
    """Have the file system set aside ``length`` bytes at ``offset``. Raises OSError where it cannot.

    Bytes that are there already stay. Without the call, those past the end of the file are written as zeros.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, offset, length)
        return
    at, end = max(offset, os.fstat(descriptor).st_size), offset + length
    while at < end:
        at += os.pwrite(descriptor, _ZEROS[: end - at], at)


def sync_data(descriptor: int) -> None:
    """Make what was written durable, and as much about the file as it takes to read that."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    elif hasattr(fcntl, "F_FULLFSYNC"):  # on macOS, fsync leaves bytes in the drive's own cache
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock the open file for this descriptor alone, until it is closed; False if another has it and we do not wait."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
