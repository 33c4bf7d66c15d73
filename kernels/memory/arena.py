"""One page-aligned region of anonymous memory; tensors and byte views lie on it without a copy."""

import contextlib
import ctypes
import math
import mmap
import sys
import threading
from collections.abc import Callable

import numpy as np
import torch

from ..memory.page import PAGE

_HUGE = 2 << 20
_SYSTEM_PAGE = mmap.PAGESIZE  # 16 KiB on Apple's processors
# Named in Python's mmap only from 3.13 on.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_MADV_POPULATE_WRITE = 23  # Linux 5.14; other systems refuse it
_PREFAULT = 8 << 20  # bytes at a time
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


class ArenaClosed(ValueError):
    """An arena that has been closed was asked for memory."""


class _Map(mmap.mmap):
    """A mapping that tells when it goes. A weak reference would be told too late: when it is gone already."""

    going: tuple[Callable[[], object], ...] = ()

    def __del__(self) -> None:
        for call in self.going:
            call()


class Arena:
    """``length`` bytes (rounded up to PAGE) of memory at ``address``; nothing is resident until it is touched.

    With ``huge_pages`` the kernel is asked for 2 MiB pages: reads pin fewer pages and products miss the TLB less, but
    one touched byte makes 2 MiB resident. Without, pages stay small, so that a sparsely used region stays sparse.
    Raises OSError when the address space has no room.
    """

    def __init__(self, length: int, *, huge_pages: bool = True) -> None:
        if length <= 0:
            raise ValueError(f"an arena needs a positive length, not {length}")
        self.length = -(-length // PAGE) * PAGE
        self._lock = threading.RLock()  # again by the garbage collector, which may close
        self._discarded = False
        # Address space to spare, so that the region can start where a huge page does.
        spare = _HUGE if huge_pages and self.length >= _HUGE else 0
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._map: _Map | None = _Map(-1, self.length + spare, flags=flags)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._base = -start % _HUGE if spare else 0
        self.address = start + self._base
        # A kernel without huge pages refuses the advice, other systems have none; the arena works all the same.
        with contextlib.suppress(OSError, AttributeError):
            advice = mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE
            # Only our length: a huge page must not reach into the spare part, which nobody accounts for.
            self._map.madvise(advice, self._base, self.length)

    def view(self, offset: int, length: int) -> memoryview:
        """A writable view of ``length`` bytes at ``offset``. Raises ValueError outside the arena or after ``close``."""
        start = self._base + offset
        return memoryview(self._at(offset, length))[start : start + length]

    def tensor(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A contiguous tensor on the bytes at ``offset``, a multiple of the item's size; no copy.

        It keeps the memory alive, also past ``close``. Raises ValueError outside the arena or after ``close``.
        """
        count = math.prod(shape)
        region = self._at(offset, count * dtype.itemsize)
        if offset % dtype.itemsize:
            raise ValueError(f"offset {offset} is not a multiple of {dtype}'s {dtype.itemsize} bytes")
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(region, dtype=dtype, count=count, offset=self._base + offset).view(shape)

    def prefault(self, offset: int, length: int) -> None:
        """Have the system back the range with memory now, as far as it can, content unchanged. Takes long: the system
        clears every page. Ends early when pages are discarded or the arena is closed meanwhile.

        Otherwise the first read into each page does it, with a processor that products could use.
        """
        end = offset + length
        self._at(offset, length)
        for start in range(offset // PAGE * PAGE, end, _PREFAULT):
            with self._lock:
                if self._map is None or self._discarded:
                    return
                # Not the map's own method: it keeps the interpreter locked.
                if _libc.madvise(self.address + start, min(_PREFAULT, end - start), _MADV_POPULATE_WRITE):
                    return  # an old kernel, or no memory: then page by page, as it is needed

    def discard(self, offset: int, length: int) -> None:
        """Give the whole pages inside the range back to the system; they read as zeros afterwards."""
        region = self._at(offset, length)
        start, end = -(-offset // _SYSTEM_PAGE) * _SYSTEM_PAGE, (offset + length) // _SYSTEM_PAGE * _SYSTEM_PAGE
        if start < end:
            with self._lock:
                self._discarded = True
                region.madvise(mmap.MADV_DONTNEED, self._base + start, end - start)

    def resident_bytes(self) -> int:
        """Bytes of the arena that are in memory now."""
        self._at(0, 0)
        pages = np.zeros(-(-self.length // _SYSTEM_PAGE), np.uint8)
        if _libc.mincore(self.address, self.length, pages.ctypes.data):
            raise OSError(ctypes.get_errno(), "mincore failed")
        return min(int(np.count_nonzero(pages & 1)) * _SYSTEM_PAGE, self.length)

    def before_it_goes(self, call: Callable[[], object]) -> None:
        """Have ``call`` made when nothing lies in the memory any more, right before the system gets it back. Raises
        ValueError after ``close``."""
        whole = self._at(0, 0)
        whole.going = (*whole.going, call)

    def close(self) -> None:
        """Hand out no more views. Idempotent; the memory goes when the last view or tensor on it does."""
        # Never mmap.close(): tensors hold the object without exporting its buffer, and would point at nothing.
        with self._lock:
            self._map = None

    def _at(self, offset: int, length: int) -> _Map:
        """The mapping, if the range lies in it."""
        if self._map is None:
            raise ArenaClosed("the arena is closed")
        if offset < 0 or length < 0 or offset + length > self.length:
            raise ValueError(f"{length} bytes at {offset} are outside an arena of {self.length} bytes")
        return self._map
