"""Files on Linux and macOS. macOS has no direct I/O: its files are read and written past the cache all the same."""

import errno
import fcntl
import os
import stat
from collections.abc import Sequence

from . import anywhere

_UNCACHED = getattr(fcntl, "F_NOCACHE", None)  # macOS
_FLUSH = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: its fsync leaves bytes in the drive's own cache


def open_file(path: str | os.PathLike[str], flags: int, mode: int, *, follow: bool) -> int:
    """See system.open_file. O_NONBLOCK, because opening a pipe would wait for its other end for ever."""
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, mode)
    os.set_blocking(descriptor, True)  # io_uring would refuse reads that have to wait
    return descriptor


def open_direct(path: str | os.PathLike[str], flags: int, mode: int, *, follow: bool) -> int:
    """See system.open_direct."""
    if not hasattr(os, "O_DIRECT"):
        raise OSError(errno.EOPNOTSUPP, "this system has no direct I/O", str(path))
    return open_file(path, flags | os.O_DIRECT, mode, follow=follow)


def read_at(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
    """See system.read_at."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, buffers, offset)
    return anywhere.read_at(descriptor, buffers, offset)


def write_at(descriptor: int, data: memoryview | bytes, offset: int) -> int:
    """See system.write_at."""
    return os.pwrite(descriptor, data, offset)


def reserve(descriptor: int, offset: int, length: int) -> None:
    """See system.reserve."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, offset, length)
    else:
        anywhere.reserve(descriptor, offset, length, write_at)


def is_foreign(status: os.stat_result) -> bool:
    """See system.is_foreign."""
    return status.st_uid != os.geteuid() or bool(status.st_mode & 0o022)


def set_mode(descriptor: int, mode: int) -> None:
    """See system.set_mode."""
    status = os.fstat(descriptor)
    if stat.S_IMODE(status.st_mode) != mode and status.st_uid == os.geteuid():
        os.fchmod(descriptor, mode)


def expect_no_order(descriptor: int) -> None:
    """See system.expect_no_order."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def keep_uncached(descriptor: int) -> None:
    """See system.keep_uncached."""
    if _UNCACHED is not None:
        fcntl.fcntl(descriptor, _UNCACHED, 1)


def expect(descriptor: int, offset: int, length: int) -> None:
    """See system.expect."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)


def drop_cached(descriptor: int, offset: int, length: int) -> None:
    """See system.drop_cached."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def sync_data(descriptor: int) -> None:
    """See system.sync_data."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    elif _FLUSH is not None:
        fcntl.fcntl(descriptor, _FLUSH)
    else:
        os.fsync(descriptor)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """See system.sync_folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int, *, wait: bool) -> bool:
    """See system.lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """See system.unlock."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def name_drive(folder: str | os.PathLike[str]) -> str:
    """See system.name_drive."""
    return f"{os.stat(folder).st_dev:x}-{os.statvfs(folder).f_fsid:x}"
