"""Memory that ends at a page that nobody may touch: whoever reads or writes past the end is killed by a signal."""

import ctypes
import mmap
from types import TracebackType

import torch

_LIBC = ctypes.CDLL(None)


class Guarded:
    """``pages`` pages, of which the last must not be touched. A context manager."""

    def __init__(self, pages: int = 64) -> None:
        self._memory = mmap.mmap(-1, pages * mmap.PAGESIZE)
        self._anchor: ctypes.c_char | None = ctypes.c_char.from_buffer(self._memory)
        self._end = (pages - 1) * mmap.PAGESIZE
        self._last = ctypes.addressof(self._anchor) + self._end
        self._protect(0)

    def room(self, length: int, alignment: int = 1) -> torch.Tensor:
        """uint8 [length], which ends where the guarded page begins, or less than ``alignment`` bytes before."""
        start = (self._end - length) // alignment * alignment
        assert start >= 0, "too few pages"
        return torch.frombuffer(self._memory, dtype=torch.uint8, count=length, offset=start) if length else _NOTHING

    def put(self, data: torch.Tensor, alignment: int = 1) -> torch.Tensor:
        """A copy of ``data`` there."""
        return self.room(len(data), alignment).copy_(data)

    def close(self) -> None:
        """Give the memory back with its last view."""
        self._protect(mmap.PROT_READ | mmap.PROT_WRITE)
        self._anchor = None

    def __enter__(self) -> "Guarded":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _protect(self, access: int) -> None:
        assert _LIBC.mprotect(ctypes.c_void_p(self._last), mmap.PAGESIZE, access) == 0


_NOTHING = torch.empty(0, dtype=torch.uint8)
