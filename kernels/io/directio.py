"""Scatter reads of a data file into a caller's memory, past the page cache where the file system lets us."""

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
from .system import drop_cached, expect_no_order, open_direct

IOV_MAX = 1024
"""Buffers the kernel takes in one preadv."""

MOST_AT_ONCE = 1 << 30
"""Bytes asked for in one call: the kernel stops at 2 GiB less a page, and io_uring counts in 32 bits."""

BUFFERED_STEP = 8 << 20
"""Bytes that may pass through the page cache before they are dropped from it."""

REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)
"""How a file system says that it has no direct I/O."""


class ShortRead(OSError):
    """The file ended before everything asked for was read.

    ``path``; ``offset`` in the file where the read began; ``wanted`` and ``got`` bytes from there.
    """

    def __init__(self, path: Path, offset: int, wanted: int, got: int) -> None:
        super().__init__(f"{path} ends early: {wanted} bytes wanted at offset {offset}, {got} are there")
        self.path, self.offset, self.wanted, self.got = path, offset, wanted, got


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a read: ``buffer`` takes what the file has at ``offset``, a PAGE multiple.

    The buffer is writable, contiguous, PAGE-aligned in memory and a PAGE multiple long.
    """

    offset: int
    buffer: memoryview


def address_of(buffer: memoryview) -> int:
    """The address in memory of the first byte of a non-empty ``buffer``."""
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def remaining(
    buffers: Iterable[memoryview], done: int, *, most_buffers: int = IOV_MAX, most_bytes: int | None = None
) -> list[memoryview]:
    """What the next preadv should fill when ``done`` bytes of ``buffers`` (byte views) are filled already. Pure.

    Never an empty buffer; at most ``most_buffers`` of them and ``most_bytes`` bytes; an empty list when all is done.
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
    """One data file, open for reading; several threads may read from it at once.

    ``direct`` asks: None takes direct I/O if a trial read works and else reads through the page cache, dropping what
    was read from it at once; False and True insist on one (True fails with OSError where the file system refuses it).
    The attribute ``direct`` says which it became. ``length`` is the file's length in bytes at the time it was opened,
    ``drive`` the number of the file system's device.
    """

    def __init__(self, path: str | os.PathLike[str], *, direct: bool | None = None) -> None:
        self.path = Path(path)
        descriptor = None if direct is False else _open_direct(self.path, insist=direct is True)
        self.direct = descriptor is not None
        if descriptor is None:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            # No read-ahead: it would fill the page cache with bytes that nobody asked for.
            expect_no_order(descriptor)
        self._descriptor = descriptor
        self._release = weakref.finalize(self, os.close, descriptor)
        self._lock = threading.RLock()
        self._readers = 0
        self._closed = False
        status = os.fstat(descriptor)
        self.length, self.drive = status.st_size, status.st_dev

    def begin(self, segments: Sequence[Segment]) -> "Transfer":
        """A read that fills every segment's buffer; segments lie one after the other in the file without a gap.

        The file stays open until the transfer's ``end``. Raises ValueError when the segments are not aligned or not
        adjacent or the file is closed.
        """
        buffers = _checked(segments)
        with self._lock:
            self._readers += 1  # first: the garbage collector may close the file from this very thread
            if self._closed:
                self.leave()
                raise ValueError(f"{self.path} is closed")
        return Transfer(self, buffers, segments[0].offset if segments else 0)

    def read(self, segments: Sequence[Segment]) -> None:
        """Fill every segment's buffer, in this thread. Raises what ``begin`` and ``Transfer.read`` raise."""
        self.begin(segments).read()

    @property
    def descriptor(self) -> int:
        """The descriptor, good for as long as a transfer is under way."""
        return self._descriptor

    def leave(self) -> None:
        """A transfer has ended."""
        with self._lock:
            self._readers -= 1
            if self._closed and self._readers == 0:
                self._release()

    def close(self) -> None:
        """Let go of the file. Idempotent; reads under way in other threads finish first, later ones are refused."""
        with self._lock:
            self._closed = True
            # A descriptor closed under a running read could be reused, and the read then deliver another file's bytes.
            if self._readers == 0:
                self._release()


class Transfer:
    """One scatter read under way, whoever performs it: what to ask the kernel for next, and what came of it.

    ``wanted`` bytes in all. For one thread at a time. A backend asks for ``rest`` and tells ``took`` until ``left`` is
    0, then calls ``end``.
    """

    def __init__(self, file: DirectFile, buffers: Sequence[memoryview], offset: int) -> None:
        self.file, self._buffers, self._offset = file, buffers, offset
        self.wanted, self._done = sum(map(len, buffers)), 0

    @property
    def left(self) -> int:
        """Bytes still to be read."""
        return self.wanted - self._done

    def rest(self) -> tuple[list[memoryview], int]:
        """What the next preadv should fill, and the offset in the file where it begins."""
        most = MOST_AT_ONCE if self.file.direct else BUFFERED_STEP
        return remaining(self._buffers, self._done, most_bytes=most), self._offset + self._done

    def took(self, got: int) -> None:
        """The kernel filled ``got`` bytes of the rest. Raises ShortRead when that is as far as the file goes."""
        if not self.file.direct:
            drop_cached(self.file.descriptor, self._offset + self._done, got)
        # A direct read can only go on at a page boundary. Inside a page it stops at the end of the file.
        step = got - got % PAGE if self.file.direct else got
        if step == 0:
            raise ShortRead(self.file.path, self._offset, self.wanted, self._done + got)
        self._done += step

    def explain(self, error: OSError) -> Exception:
        """``error``, or a ValueError where the kernel refused because a buffer is not aligned in memory."""
        if error.errno == errno.EINVAL and any(address_of(buffer) % PAGE for buffer in self._buffers if len(buffer)):
            return ValueError(f"direct reads need buffers at multiples of {PAGE} in memory")
        return error

    def read(self) -> None:
        """Perform it in this thread, and end it.

        Raises ShortRead when the file ends before, OSError when the drive fails, ValueError for a buffer that is not
        aligned. After an error the buffers' content is undefined.
        """
        try:
            while self.left:
                buffers, offset = self.rest()
                self.took(os.preadv(self.file.descriptor, buffers, offset))
        except OSError as error:
            clearer = self.explain(error)
            if clearer is error:
                raise
            raise clearer from error
        finally:
            self.end()

    def end(self) -> None:
        """The kernel writes into the buffers no more; the file may be let go of."""
        self.file.leave()


def _checked(segments: Sequence[Segment]) -> list[memoryview]:
    """The segments' buffers as byte views. Raises ValueError unless they are aligned and adjacent."""
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
    """A descriptor for direct reads, or None where the file system refuses them (an OSError if we ``insist``)."""
    descriptor = None
    try:
        descriptor = open_direct(path, os.O_RDONLY)
        # Some file systems accept the flag and refuse the read, or ask for more than page alignment: so really read,
        # at a file offset and an address that are odd multiples of PAGE.
        with mmap.mmap(-1, 2 * PAGE) as trial, memoryview(trial) as view, view[PAGE:] as page:
            os.preadv(descriptor, [page], PAGE if os.fstat(descriptor).st_size > PAGE else 0)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        if error.errno in REFUSALS and not insist:
            return None
        raise
    return descriptor
