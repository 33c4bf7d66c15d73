"""Backends that read a drive: their names, which of them work here, and a reader for each."""

from .directio import DirectFile
from .reading import BackendUnavailable, Reader, Threads
from .uring import Uring, probe

BACKENDS = ("threads", "io_uring", "buffered")
"""Names of the backends.

"threads" and "io_uring" read past the page cache where the file system allows it. "buffered" is threads through the
page cache.
"""


def open_reader(backend: str, depth: int, enough: int | None = None) -> Reader:
    """Open a reader that keeps ``depth`` reads in flight, but starts none while a drive delivers ``enough`` bytes.

    Raises ValueError for a name that is not in BACKENDS, and BackendUnavailable where the backend does not work on this
    machine.
    """
    if backend not in BACKENDS:
        raise ValueError(f"there is no backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend != "io_uring":
        return Threads(depth, enough)
    probe()
    return Uring(depth, enough)


def choose_direct(backend: str) -> bool | None:
    """Return the ``direct`` argument of DirectFile for ``backend``.

    False reads through the page cache. None reads directly where that works.
    """
    return False if backend == "buffered" else None


def list_usable(*files: DirectFile) -> tuple[str, ...]:
    """Return the backends that work on this machine and that differ on the drive of ``files``."""
    names = ["threads"]
    try:
        probe()
        names.append("io_uring")
    except BackendUnavailable:
        pass
    if any(file.direct for file in files):
        names.append("buffered")
    return tuple(names)
