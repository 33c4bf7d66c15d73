"""Arenas: page-aligned regions of anonymous memory, with tensors and byte views on them without a copy."""

import contextlib
import ctypes
import errno
import math
import mmap
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .c_library import find_c
from .page import PAGE

_HUGE = 2 << 20
_SYSTEM_PAGE = mmap.PAGESIZE  # 16 KiB on Apple's processors
# Python's mmap has the name only from 3.13 on.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_PRIVATE: dict[str, Any] = {}  # Windows: what no file has is private
if hasattr(mmap, "MAP_ANONYMOUS"):
    _PRIVATE["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
_MADV_POPULATE_WRITE = 23  # Linux 5.14; other systems refuse it
_PREFAULT = 8 << 20  # bytes at a time
_madvise = find_c("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_mincore = find_c("mincore", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


class ArenaClosed(ValueError):
    """Memory was requested from a closed arena."""


class _Map(mmap.mmap):
    """A mapping that calls back right before it is unmapped.

    A weak reference would call too late, after the unmapping.
    """

    going: tuple[Callable[[], object], ...] = ()

    def __del__(self) -> None:
        for call in self.going:
            call()


class Arena:
    """``length`` bytes (rounded up to PAGE) of memory at ``address``. Nothing is resident until it is touched.

    With ``huge_pages`` the kernel is asked for 2 MiB pages. Reads then pin fewer pages and products miss the TLB less,
    but one touched byte makes 2 MiB resident. Without them pages stay small, so that a sparsely used region stays
    sparse. Raises OSError when the address space has no room, ValueError for a length that is not positive.
    """

    def __init__(self, length: int, *, huge_pages: bool = True) -> None:
        if length <= 0:
            raise ValueError(f"an arena needs a positive length, not {length}")
        self.length = -(-length // PAGE) * PAGE
        self._lock = threading.RLock()  # reentrant: the garbage collector may close the arena meanwhile
        self._discarded = False
        # Spare address space, so that the region can start at a huge page.
        spare = _HUGE if huge_pages and self.length >= _HUGE else 0
        self._map: _Map | None = _Map(-1, self.length + spare, **_PRIVATE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._base = -start % _HUGE if spare else 0
        self.address = start + self._base
        # Kernels without huge pages refuse the advice, and other systems have none. The arena works anyway.
        with contextlib.suppress(OSError, AttributeError):
            advice = mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE
            # Only our length: a huge page must not reach into the spare part, which is not accounted for.
            self._map.madvise(advice, self._base, self.length)

    def view(self, offset: int, length: int) -> memoryview:
        """Return a writable view of ``length`` bytes at ``offset``.

        Raises ValueError outside the arena, ArenaClosed (a ValueError) after ``close``.
        """
        start = self._base + offset
        return memoryview(self._at(offset, length))[start : start + length]

    def tensor(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a contiguous tensor on the bytes at ``offset``, a multiple of the item's size, without a copy.

        The tensor keeps the memory alive, also past ``close``. Raises ValueError outside the arena, ArenaClosed (a
        ValueError) after ``close``.
        """
        count = math.prod(shape)
        region = self._at(offset, count * dtype.itemsize)
        if offset % dtype.itemsize:
            raise ValueError(f"offset {offset} is not a multiple of {dtype}'s {dtype.itemsize} bytes")
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(region, dtype=dtype, count=count, offset=self._base + offset).view(shape)

    def prefault(self, offset: int, length: int) -> None:
        """Ask the system to back the range with memory now. The content does not change.

        It takes long, because the system clears every page. Without it the first read into each page does this work, on
        a processor that products could use. The call ends early when pages are discarded or the arena is closed
        meanwhile, and where the system refuses.
        """
        end = offset + length
        self._at(offset, length)
        for start in range(offset // PAGE * PAGE, end, _PREFAULT):
            with self._lock:
                if self._map is None or self._discarded:
                    return
                # The map's own method would keep the interpreter locked.
                if _madvise is None or _madvise(
                    self.address + start, min(_PREFAULT, end - start), _MADV_POPULATE_WRITE
                ):
                    return  # an old kernel, or no memory: pages are then backed one by one, on first use

    def discard(self, offset: int, length: int) -> None:
        """Return the whole pages inside the range to the system. They read as zeros afterwards. Raises as ``view``.

        Where the system takes none back, they become zeros and stay.
        """
        region = self._at(offset, length)
        start, end = -(-offset // _SYSTEM_PAGE) * _SYSTEM_PAGE, (offset + length) // _SYSTEM_PAGE * _SYSTEM_PAGE
        if start < end:
            with self._lock:
                self._discarded = True
                if hasattr(region, "madvise"):
                    region.madvise(mmap.MADV_DONTNEED, self._base + start, end - start)
                else:
                    ctypes.memset(self.address + start, 0, end - start)

    def resident_bytes(self) -> int:
        """Return the number of bytes of the arena that are in memory now.

        Raises OSError if the system does not tell.
        """
        self._at(0, 0)
        pages = np.zeros(-(-self.length // _SYSTEM_PAGE), np.uint8)
        if _mincore is None:
            raise OSError(errno.ENOSYS, "this system does not tell what is in memory")
        if _mincore(self.address, self.length, pages.ctypes.data):
            raise OSError(ctypes.get_errno(), "mincore failed")
        return min(int(np.count_nonzero(pages & 1)) * _SYSTEM_PAGE, self.length)

    def call_before_release(self, call: Callable[[], object]) -> None:
        """Register ``call``, to be made right before the memory returns to the system.

        No view or tensor is left on the memory then. Raises ArenaClosed (a ValueError) after ``close``.
        """
        whole = self._at(0, 0)
        whole.going = (*whole.going, call)

    def close(self) -> None:
        """Hand out no more views. Idempotent. The memory is released with the last view or tensor on it."""
        # Never mmap.close(): tensors hold the object without exporting its buffer, so they would point at nothing.
        with self._lock:
            self._map = None

    def _at(self, offset: int, length: int) -> _Map:
        """Return the mapping if the range lies in it."""
        if self._map is None:
            raise ArenaClosed("the arena is closed")
        if offset < 0 or length < 0 or offset + length > self.length:
            raise ValueError(f"{length} bytes at {offset} are outside an arena of {self.length} bytes")
        return self._map
