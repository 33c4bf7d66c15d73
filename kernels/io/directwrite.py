"""Appends of page-aligned buffers to a data file, past the page cache where the file system allows it."""

import errno
import os
import weakref
from pathlib import Path

from ..closing import Closing
from ..memory.page import PAGE
from .directio import BUFFERED_STEP, REFUSALS, address_of
from .regular import open_regular
from .system import SYSTEM


class DirectWriter(Closing):
    """A data file, created if absent, open for appending. ``path`` is no link. For one thread at a time.

    ``direct`` as an argument: None uses direct I/O where it works. Otherwise it writes through the page cache, and
    flushes and drops every BUFFERED_STEP bytes so that dirty pages stay few. True insists on direct I/O and raises
    OSError without it. False uses the page cache. ``direct`` as an attribute says which is in use; the first write
    settles it. ``position`` is the offset of the next write, at first the file's length. Nothing is durable before
    ``sync``.
    """

    def __init__(self, path: str | os.PathLike[str], *, direct: bool | None = None) -> None:
        self.path = Path(path)
        self.direct = direct is not False
        self._may_fall_back = direct is None
        try:
            self._open()
        except OSError as error:
            self._fall_back(error)
        self.position = os.fstat(self._descriptor).st_size
        self._flushed = self.position

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT
        self._descriptor = open_regular(self.path, flags, follow=False, direct=self.direct)
        if not self.direct:
            SYSTEM.keep_uncached(self._descriptor)
        self._release = weakref.finalize(self, os.close, self._descriptor)

    def _fall_back(self, error: OSError) -> None:
        """Reopen the file without direct I/O if ``error`` means that it is refused here, else raise ``error``."""
        if error.errno not in REFUSALS or not (self.direct and self._may_fall_back):
            raise error
        self.direct = False
        if hasattr(self, "_release"):
            self._release()
        self._open()

    def write(self, buffer: memoryview) -> None:
        """Append ``buffer``, PAGE-aligned in memory and a PAGE multiple long.

        Raises OSError (errno ENOSPC when the drive is full), ValueError on bad alignment or a closed file. After an
        error ``position`` is unchanged, and the next write overwrites what was written behind it.
        """
        self._check_open()
        data = buffer.cast("B")
        if len(data) % PAGE or self.position % PAGE:
            raise ValueError(f"length {len(data)} and position {self.position} must be multiples of {PAGE}")
        if len(data) and address_of(data) % PAGE:
            raise ValueError(f"the buffer must be at a multiple of {PAGE} in memory")
        done = 0
        while done < len(data):
            done += self._write_some(data[done:], self.position + done)
        self.position += done
        self._may_fall_back = False

    def _write_some(self, data: memoryview, offset: int) -> int:
        if self.direct:
            try:
                written = SYSTEM.write_at(self._descriptor, data, offset)
            except OSError as error:
                self._fall_back(error)
                return 0
            if written < PAGE:
                raise OSError(errno.ENOSPC, f"only {written} bytes of a page were written", str(self.path))
            # A direct write can only continue at a page boundary.
            return written - written % PAGE
        written = SYSTEM.write_at(self._descriptor, data[:BUFFERED_STEP], offset)
        if offset + written - self._flushed >= BUFFERED_STEP:
            self._flush(offset + written)
        return written

    def _flush(self, end: int) -> None:
        SYSTEM.sync_data(self._descriptor)
        if not self.direct:
            # After a failed write the flushed bytes may reach past the end.
            start = min(self._flushed, end)
            SYSTEM.drop_cached(self._descriptor, start, end - start)
        self._flushed = end

    def sync(self) -> None:
        """Make everything written so far durable (fdatasync). Raises OSError when the drive fails."""
        self._check_open()
        self._flush(self.position)

    def truncate(self, length: int) -> None:
        """Cut the file to ``length`` bytes, a PAGE multiple not above ``position``, and continue from there."""
        self._check_open()
        if length % PAGE or not 0 <= length <= self.position:
            raise ValueError(f"cannot cut {self.path} of {self.position} bytes to {length}")
        os.ftruncate(self._descriptor, length)
        self.position = length
        self._flushed = min(self._flushed, length)

    def close(self) -> None:
        """Close the file. Idempotent. It does not sync."""
        self._release()

    def _check_open(self) -> None:
        if not self._release.alive:
            raise ValueError(f"{self.path} is closed")
