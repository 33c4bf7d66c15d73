"""Opens files that must be files: a pipe, a device or a folder in the place of one is refused, and nothing waits."""

import errno
import os
import stat


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Open the regular file ``path``. Returns the descriptor. Raises OSError, EINVAL for anything else.

    Without O_NONBLOCK, opening a pipe would wait for its other end for ever.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        os.set_blocking(descriptor, True)  # io_uring would refuse reads that have to wait
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """Return the content of the regular file ``path``. Raises OSError, EFBIG where it has more than ``most`` bytes."""
    with open(open_regular(path), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return content
