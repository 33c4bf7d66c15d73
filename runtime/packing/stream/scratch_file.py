"""Room for tensors above the memory budget: files without a name, little of which is resident at a time."""

import errno
import mmap
import tempfile
import weakref
from pathlib import Path

import numpy as np
import torch

from ....kernels.formats.base import allocate_on_heap
from ....kernels.io.system import SYSTEM
from ....tiering.errors import BundleError, FlashFull
from ....tiering.units import format_size


class ScratchFile:
    """Makes tensors of bytes. Those of more than ``most`` bytes lie in files in ``folder``, which nobody else can read.
    A file goes with its tensor. Call ``let_go`` every few megabytes while one is filled or read."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def room(self, length: int) -> torch.Tensor:
        """uint8 [length], with any content. Raises FlashFull if the folder's drive has no room for it."""
        if length <= self._most:
            return allocate_on_heap(length)
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                # Reserved, for where a mapped file cannot be written, the process dies.
                SYSTEM.reserve(file.fileno(), 0, length)
                mapped = mmap.mmap(file.fileno(), length)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise BundleError(f"{self._folder} cannot be written: {error.strerror or error}") from error
            raise FlashFull(
                f"{self._folder} has no room for {format_size(length)} that lie there while a matrix is encoded; "
                "free some space, or raise host_memory"
            ) from error
        self._maps.add(mapped)
        return torch.from_numpy(np.frombuffer(mapped, dtype=np.uint8))

    def let_go(self) -> None:
        """Drop all pages of files from memory. What was written there stays."""
        for mapped in self._maps:
            if hasattr(mapped, "madvise"):
                mapped.madvise(mmap.MADV_DONTNEED)
