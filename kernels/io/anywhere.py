"""Substitutes for calls that a system lacks: a seek before each read, zeros instead of reserved room.

A seek and the read after it are one step for all threads. So files are read one piece at a time: right, and slower.
"""

import os
import threading
from collections.abc import Callable, Sequence

_ZEROS = bytes(1 << 20)
_lock = threading.Lock()


def read_at(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
    """As ``os.preadv``: fill ``buffers`` from ``offset`` on, and return the bytes read, 0 at the end of the file."""
    done = 0
    with _lock, open(descriptor, "rb", buffering=0, closefd=False) as file:
        file.seek(offset)
        for buffer in buffers:
            got = file.readinto(buffer)
            done += got
            if got < len(buffer):
                break
    return done


def reserve(descriptor: int, offset: int, length: int, write_at: Callable[[int, memoryview | bytes, int], int]) -> None:
    """As ``os.posix_fallocate``: bytes past the end of the file are written as zeros. Raises OSError."""
    at, end = max(offset, os.fstat(descriptor).st_size), offset + length
    while at < end:
        at += write_at(descriptor, _ZEROS[: end - at], at)
