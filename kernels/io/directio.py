"""Scatter reads of a data file into a caller's memory, past the page cache where the file system allows it."""

import errno
import mmap
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..closing import Closing
from ..memory.page import PAGE
from .regular import open_regular
from .system import SYSTEM

IOV_MAX = 1024
"""The most buffers that the kernel takes in one preadv."""

MOST_AT_ONCE = 1 << 30
"""The most bytes requested in one call. The kernel stops at 2 GiB less a page, and io_uring counts in 32 bits."""

BUFFERED_STEP = 8 << 20
"""Bytes that pass through the page cache before they are dropped from it."""

REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)
"""Error numbers by which a file system says that it has no direct I/O."""


class ShortRead(OSError):
    """The file ended before all requested bytes were read.

    ``offset`` is the place in the file at ``path`` where the read began. ``wanted`` and ``got`` count bytes from there.
    """

    def __init__(self, path: Path, offset: int, wanted: int, got: int) -> None:
        super().__init__(f"{path} ends early: {wanted} bytes wanted at offset {offset}, {got} are there")
        self.path, self.offset, self.wanted, self.got = path, offset, wanted, got


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a read: ``buffer`` receives the file's bytes from ``offset`` on, a PAGE multiple.

    The buffer is writable, contiguous, PAGE-aligned in memory and a PAGE multiple long.
    """

    offset: int
    buffer: memoryview


def address_of(buffer: memoryview) -> int:
    """Return the address in memory of the first byte of a non-empty ``buffer``."""
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def skip_filled(
    buffers: Iterable[memoryview], done: int, *, most_buffers: int = IOV_MAX, most_bytes: int | None = None
) -> list[memoryview]:
    """Return the buffers that the next preadv should fill after ``done`` bytes of ``buffers`` are filled. Pure.

    ``buffers`` are byte views. No returned buffer is empty. There are at most ``most_buffers`` of them and
    ``most_bytes`` bytes. The list is empty when all is done.
    """
    rest: list[memoryview] = []
    for buffer in buffers:
        if done >= len(buffer):
            done -= len(buffer)
            continue
        if len(rest) == most_buffers or most_bytes == 0:
            break
        piece = buffer[done:] if most_bytes is None else buffer[done : done + most_bytes]
        done = 0
        if most_bytes is not None:
            most_bytes -= len(piece)
        rest.append(piece)
    return rest


class DirectFile(Closing):
    """A data file, open for reading. Several threads may read from it at once.

    ``direct`` as an argument: None uses direct I/O if a trial read works, and otherwise reads through the page cache
    and drops what it read at once. True insists on direct I/O and raises OSError where the file system refuses it.
    False uses the page cache. ``direct`` as an attribute says which is in use. ``length`` is the file's length in bytes
    when it was opened. ``drive`` is the number of the file system's device.
    """

    def __init__(self, path: str | os.PathLike[str], *, direct: bool | None = None) -> None:
        self.path = Path(path)
        descriptor = None if direct is False else _open_direct(self.path, insist=direct is True)
        self.direct = descriptor is not None
        if descriptor is None:
            descriptor = open_regular(self.path)
            # No read-ahead: it would fill the page cache with bytes that were not requested.
            SYSTEM.expect_no_order(descriptor)
            SYSTEM.keep_uncached(descriptor)
        self._descriptor = descriptor
        self._release = weakref.finalize(self, os.close, descriptor)
        self._lock = threading.RLock()
        self._readers = 0
        self._closed = False
        status = os.fstat(descriptor)
        self.length, self.drive = status.st_size, status.st_dev

    def begin(self, segments: Sequence[Segment]) -> "Transfer":
        """Begin a read that fills every segment's buffer. The segments are adjacent in the file.

        The file stays open until the transfer's ``end``. Raises ValueError when the segments are not aligned or not
        adjacent, or when the file is closed.
        """
        buffers = _checked(segments)
        with self._lock:
            self._readers += 1  # first: the garbage collector may close the file from this very thread
            if self._closed:
                self.leave()
                raise ValueError(f"{self.path} is closed")
        return Transfer(self, buffers, segments[0].offset if segments else 0)

    def read(self, segments: Sequence[Segment]) -> None:
        """Fill every segment's buffer in this thread. Raises as ``begin`` and ``Transfer.read``."""
        self.begin(segments).read()

    @property
    def descriptor(self) -> int:
        """The file descriptor. It is valid while a transfer is running."""
        return self._descriptor

    def leave(self) -> None:
        """Note that a transfer has ended."""
        with self._lock:
            self._readers -= 1
            if self._closed and self._readers == 0:
                self._release()

    def close(self) -> None:
        """Close the file. Idempotent. Running reads in other threads finish first, later reads are refused."""
        with self._lock:
            self._closed = True
            # A descriptor closed under a running read could be reused: the read would deliver another file's bytes.
            if self._readers == 0:
                self._release()


class Transfer:
    """A running scatter read, for any backend: the next request to the kernel, and the bytes that have arrived.

    ``wanted`` is the total in bytes. For one thread at a time. A backend requests ``rest`` and reports it with ``took``
    until ``left`` is 0, then calls ``end``.
    """

    def __init__(self, file: DirectFile, buffers: Sequence[memoryview], offset: int) -> None:
        self.file, self._buffers, self._offset = file, buffers, offset
        self.wanted, self._done = sum(map(len, buffers)), 0

    @property
    def left(self) -> int:
        """Bytes that are still to be read."""
        return self.wanted - self._done

    def rest(self) -> tuple[list[memoryview], int]:
        """Return the buffers that the next preadv should fill, and the offset in the file where it begins."""
        most = MOST_AT_ONCE if self.file.direct else BUFFERED_STEP
        return skip_filled(self._buffers, self._done, most_bytes=most), self._offset + self._done

    def took(self, got: int) -> None:
        """Note that the kernel filled ``got`` bytes of the rest. Raises ShortRead when the file ends there."""
        if not self.file.direct:
            SYSTEM.drop_cached(self.file.descriptor, self._offset + self._done, got)
        # A direct read can only continue at a page boundary. It stops inside a page only at the end of the file.
        step = got - got % PAGE if self.file.direct else got
        if step == 0:
            raise ShortRead(self.file.path, self._offset, self.wanted, self._done + got)
        self._done += step

    def explain(self, error: OSError) -> Exception:
        """Return ``error``, or a ValueError where the kernel refused because a buffer is not aligned in memory."""
        if error.errno == errno.EINVAL and any(address_of(buffer) % PAGE for buffer in self._buffers if len(buffer)):
            return ValueError(f"direct reads need buffers at multiples of {PAGE} in memory")
        return error

    def read(self) -> None:
        """Perform the read in this thread, and end it.

        Raises ShortRead when the file ends early, OSError when the drive fails, ValueError for a buffer that is not
        aligned. After an error the buffers' content is undefined.
        """
        try:
            while self.left:
                buffers, offset = self.rest()
                self.took(SYSTEM.read_at(self.file.descriptor, buffers, offset))
        except OSError as error:
            clearer = self.explain(error)
            if clearer is error:
                raise
            raise clearer from error
        finally:
            self.end()

    def end(self) -> None:
        """Release the file. The kernel must no longer write into the buffers."""
        self.file.leave()


def _checked(segments: Sequence[Segment]) -> list[memoryview]:
    """Return the segments' buffers as byte views. Raises ValueError unless they are aligned and adjacent."""
    buffers: list[memoryview] = []
    end = segments[0].offset if segments else 0
    for segment in segments:
        if segment.offset != end:
            raise ValueError(f"segments are not adjacent: one ends at {end}, the next starts at {segment.offset}")
        if segment.offset % PAGE or segment.buffer.nbytes % PAGE:
            raise ValueError(f"offset {segment.offset} and length {segment.buffer.nbytes} must be multiples of {PAGE}")
        end += segment.buffer.nbytes
        buffers.append(segment.buffer.cast("B"))
    return buffers


def _open_direct(path: Path, *, insist: bool) -> int | None:
    """Open ``path`` for direct reads.

    Returns None where the file system refuses them, or raises OSError if we ``insist``.
    """
    descriptor = None
    try:
        descriptor = open_regular(path, os.O_RDONLY, direct=True)
        # Some file systems accept the flag and refuse the read, or require more than page alignment. So try a read
        # at a file offset and an address that are odd multiples of PAGE.
        with mmap.mmap(-1, 2 * PAGE) as trial, memoryview(trial) as view, view[PAGE:] as page:
            SYSTEM.read_at(descriptor, [page], PAGE if os.fstat(descriptor).st_size > PAGE else 0)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        if error.errno in REFUSALS and not insist:
            return None
        raise
    return descriptor
