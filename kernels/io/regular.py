"""Opens files that must be files: a pipe, a device or a folder in the place of one is refused, and nothing waits."""

import errno
import os
import stat

from .system import SYSTEM

_PIECE = 1 << 20


def open_regular(
    path: str | os.PathLike[str],
    flags: int = os.O_RDONLY,
    mode: int | None = None,
    *,
    follow: bool = True,
    direct: bool = False,
) -> int:
    """Open the regular file ``path``. Returns the descriptor. Raises OSError for anything else.

    If ``flags`` may make it, a file of this user has ``mode`` then, whatever the umask; None: a new one has what the
    umask leaves.

    Without ``follow`` it is no link either: what lies in a folder of ours might be put there to have another file
    written. ``direct`` is past the page cache, which raises EOPNOTSUPP where the system has no such mode.
    """
    open_file = SYSTEM.open_direct if direct else SYSTEM.open_file
    try:
        descriptor = open_file(path, flags, 0o666 if mode is None else mode, follow=follow)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise OSError(errno.ELOOP, "it is a link, and must be a file", str(path)) from error
        if error.errno == errno.ENXIO:  # a pipe that nobody reads, a socket, a device that is not there
            raise OSError(errno.ENXIO, "it is not a regular file", str(path)) from error
        raise
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if mode is not None and flags & os.O_CREAT:
            SYSTEM.set_mode(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: str | os.PathLike[str], most: int, *, follow: bool = True, private: bool = False) -> bytes:
    """Return the content of the regular file ``path``. Raises OSError, EFBIG where it has more than ``most`` bytes,
    EPERM where it should be ``private`` and others may write it. ``follow`` as for ``open_regular``."""
    with open(open_regular(path, follow=follow), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if private and SYSTEM.is_foreign(status):
            raise OSError(errno.EPERM, "others may write it", str(path))
        pieces, left = [], most + 1
        while left and (piece := file.read(min(left, _PIECE))):  # it may grow, and its length need not be true
            pieces.append(piece)
            left -= len(piece)
    if not left:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return b"".join(pieces)
