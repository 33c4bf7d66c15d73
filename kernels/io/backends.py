"""The ways of reading a drive by name: which of them work here, and a reader for each."""

from .directio import DirectFile
from .reading import BackendUnavailable, Reader, Threads
from .uring import Uring, probe

BACKENDS = ("threads", "io_uring", "buffered")
"""Threads and io_uring read past the page cache where the file system lets us; "buffered" is threads through it."""


def open_reader(backend: str, depth: int, enough: int | None = None) -> Reader:
    """A reader that keeps ``depth`` reads in flight, but none beside ``enough`` bytes that a drive already delivers.

    Raises BackendUnavailable where this machine has none such.
    """
    if backend != "io_uring":
        return Threads(depth, enough)
    probe()
    return Uring(depth, enough)


def directness(backend: str) -> bool | None:
    """What to ask DirectFile for: False for reads through the page cache, None for direct ones where they work."""
    return False if backend == "buffered" else None


def usable(*files: DirectFile) -> tuple[str, ...]:
    """The backends that work on this machine, and differ on a drive on which ``files`` were opened."""
    names = ["threads"]
    try:
        probe()
        names.append("io_uring")
    except BackendUnavailable:
        pass
    if any(file.direct for file in files):
        names.append("buffered")
    return tuple(names)
