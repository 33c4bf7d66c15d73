"""A file of a checkpoint, open for reads that leave nothing in the page cache."""

import os
import weakref
from pathlib import Path

from ....kernels.io.system import SYSTEM
from ....tiering.errors import CheckpointError
from ....tiering.units import MiB
from .regular import open_descriptor

_DROP = 8 * MiB
"""Bytes that may be read before they are dropped from the page cache."""


class SourceFile:
    """A regular file open for positioned reads. For one thread at a time. Raises CheckpointError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor, self.length = open_descriptor(path)
        self._release = weakref.finalize(self, os.close, self._descriptor)

    def expect(self, offset: int, length: int) -> None:
        """Have the kernel read ``length`` bytes at ``offset`` ahead; they stay cached until they are read."""
        if length:
            SYSTEM.expect(self._descriptor, offset, length)

    def read(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` with the bytes at ``offset``. CheckpointError when they are not there or not readable."""
        done, wanted = 0, into.nbytes
        into = into.cast("B")
        while done < wanted:
            try:
                got = SYSTEM.read_at(self._descriptor, [into[done : done + _DROP]], offset + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self.path} cannot be read at offset {offset + done}: {error.strerror}"
                ) from error
            if got == 0:
                raise CheckpointError(
                    f"{self.path} ends at {offset + done}, in the middle of a tensor; fetch the checkpoint again"
                )
            done += got
            # From well before: the kernel caches in runs of pages, and keeps a run that is not dropped as a whole.
            start = max(0, offset + done - got - _DROP)
            SYSTEM.drop_cached(self._descriptor, start, offset + done - start)

    def close(self) -> None:
        """Let go of the file and of what the page cache has of it. Idempotent."""
        if self._release.alive:
            SYSTEM.drop_cached(self._descriptor, 0, 0)
        self._release()
