"""What a bundle that is being written appends on one drive: buffered, to one data file after the other.

One half of the buffer is written by a thread while the other is filled.
"""

import errno
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ....kernels.io.directwrite import DirectWriter
from ...driving.small_files import sync_folder
from ...errors import BundleError, FlashFull
from ...units import PAGE


class DriveWriter:
    """Appends to data files in ``folder`` through ``buffer``, which is PAGE aligned and a PAGE multiple long.

    All methods raise FlashFull when the drive is full, and BundleError when it fails, as late as at the next ``sync``.
    For one thread at a time.
    """

    def __init__(self, folder: Path, buffer: memoryview, *, direct: bool | None) -> None:
        self.folder = folder
        half = max(PAGE, len(buffer) // 2 // PAGE * PAGE)
        self._halves = [part for part in (buffer[:half], buffer[half:]) if part]
        self._filled = 0
        """Bytes in the first half. Those in the other are being written."""
        self._thread: ThreadPoolExecutor | None = None
        self._written: Future[None] | None = None
        self._direct = direct
        self._writer: DirectWriter | None = None
        self._at = 0

    def is_at(self, name: str) -> bool:
        """Whether the data file ``name`` is the one that is open."""
        return self._writer is not None and self._writer.path.name == name

    def open(self, name: str) -> None:
        """Go on to the data file ``name``, at its end. What was appended before must be synced."""
        assert not self._filled, "the last data file lacks bytes"
        self.close()
        with translate_errors(self.folder):
            self._writer = DirectWriter(self.folder / name, direct=self._direct)
            self._at = self._writer.position
            self._thread = ThreadPoolExecutor(1, "penstock-write")
            sync_folder(self.folder)

    @property
    def position(self) -> int:
        """Where in the data file the next byte goes."""
        assert self._writer is not None
        return self._at + self._filled

    def put(self, view: memoryview) -> None:
        """Append ``view``, of bytes."""
        while view:
            buffer = self._halves[0]
            step = min(len(view), len(buffer) - self._filled)
            buffer[self._filled : self._filled + step] = view[:step]
            self._filled += step
            view = view[step:]
            if self._filled == len(buffer):
                self._write_out()

    def sync(self) -> None:
        """Make all that was appended durable; it must end at a page boundary."""
        if self._writer is not None:
            self._write_out()
            self._wait()
            with translate_errors(self.folder):
                self._writer.sync()

    def close(self) -> None:
        """Let go of the data file, as it is. Idempotent."""
        if self._thread is not None:
            self._thread.shutdown()  # it has to end before its file and buffer go, whatever ended this thread's work
            self._thread = self._written = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write_out(self) -> None:
        """Have the thread write what was filled, once it is done with the other half."""
        assert self._writer is not None
        assert self._thread is not None
        self._wait()
        filled, self._filled = self._filled, 0
        self._written = self._thread.submit(self._writer.write, self._halves[0][:filled])
        self._at += filled
        self._halves.reverse()
        if len(self._halves) == 1:
            self._wait()

    def _wait(self) -> None:
        """Until nothing is being written."""
        if self._written is not None:
            with translate_errors(self.folder):
                self._written.result()
            self._written = None


@contextmanager
def translate_errors(folder: Path) -> Iterator[None]:
    """Say what a failing drive means for the bundle, part of which is being written in ``folder``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FlashFull(
                f"the drive of {folder} is full; make room and run the same again: packing goes on after "
                "what is written, or delete that folder"
            ) from error
        raise BundleError(f"{error.filename or folder} cannot be written: {error.strerror or error}") from error
