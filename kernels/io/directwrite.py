"""Appends page-aligned buffers to a data file, past the page cache where the file system lets us."""

import errno
import os
import weakref
from pathlib import Path

from ..closing import Closing
from ..memory.page import PAGE
from .directio import BUFFERED_STEP, REFUSALS, address_of
from .system import drop_cached, open_direct, sync_data


class DirectWriter(Closing):
    """One data file, created if absent, open for appending. For one thread at a time.

    ``direct`` asks: None takes direct I/O where it works and else writes through the page cache, flushing and dropping
    every BUFFERED_STEP bytes so that dirty pages stay few; False and True insist on one (True fails with OSError).
    The attribute ``direct`` says which it is (it is settled by the first write). ``position`` is where the next write
    goes: at first the file's length. Nothing is durable before ``sync``.
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
        self._descriptor = open_direct(self.path, flags) if self.direct else os.open(self.path, flags, 0o666)
        self._release = weakref.finalize(self, os.close, self._descriptor)

    def _fall_back(self, error: OSError) -> None:
        """Open the file again without direct I/O if ``error`` means that it is refused here, else raise ``error``."""
        if error.errno not in REFUSALS or not (self.direct and self._may_fall_back):
            raise error
        self.direct = False
        if hasattr(self, "_release"):
            self._release()
        self._open()

    def write(self, buffer: memoryview) -> None:
        """Append ``buffer``, PAGE-aligned in memory and a PAGE multiple long.

        Raises OSError (errno ENOSPC when the drive is full), ValueError on bad alignment or a closed file. After an
        error ``position`` is where it was; what was written behind it is overwritten by the next write.
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
                written = os.pwrite(self._descriptor, data, offset)
            except OSError as error:
                self._fall_back(error)
                return 0
            if written < PAGE:
                raise OSError(errno.ENOSPC, f"only {written} bytes of a page were written", str(self.path))
            # A direct write can only go on at a page boundary.
            return written - written % PAGE
        written = os.pwrite(self._descriptor, data[:BUFFERED_STEP], offset)
        if offset + written - self._flushed >= BUFFERED_STEP:
            self._flush(offset + written)
        return written

    def _flush(self, end: int) -> None:
        sync_data(self._descriptor)
        if not self.direct:
            # After a failed write what was flushed may reach past the end.
            start = min(self._flushed, end)
            drop_cached(self._descriptor, start, end - start)
        self._flushed = end

    def sync(self) -> None:
        """Make everything written so far durable (fdatasync). Raises OSError when the drive fails."""
        self._check_open()
        self._flush(self.position)

    def truncate(self, length: int) -> None:
        """Cut the file to ``length`` bytes, a PAGE multiple not above ``position``, and go on from there."""
        self._check_open()
        if length % PAGE or not 0 <= length <= self.position:
            raise ValueError(f"cannot cut {self.path} of {self.position} bytes to {length}")
        os.ftruncate(self._descriptor, length)
        self.position = length
        self._flushed = min(self._flushed, length)

    def close(self) -> None:
        """Let go of the file. Idempotent; does not sync."""
        self._release()

    def _check_open(self) -> None:
        if not self._release.alive:
            raise ValueError(f"{self.path} is closed")
