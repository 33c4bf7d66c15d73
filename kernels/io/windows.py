"""Files on Windows, through its own calls.

Files are opened so that others may rename and remove them meanwhile, as everywhere else. Reads and writes carry their
offset. Direct I/O is FILE_FLAG_NO_BUFFERING, which asks for the same alignment as Linux. The user's profile is the
user's alone, so no file has a mode of its own.
"""

import ctypes
import errno
import importlib
import os
import time
from collections.abc import Sequence
from typing import Any

_msvcrt: Any = importlib.import_module("msvcrt")  # no type checker knows these on other systems
_ctypes: Any = ctypes
_calls: Any = _ctypes.WinDLL("kernel32", use_last_error=True)
_calls.CreateFileW.restype = ctypes.c_void_p
_numbers, _pointer = [ctypes.c_uint32] * 2, ctypes.c_void_p
_calls.CreateFileW.argtypes = (ctypes.c_wchar_p, *_numbers, _pointer, *_numbers, _pointer)
_transfer = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32), ctypes.c_void_p)
_calls.ReadFile.argtypes = _calls.WriteFile.argtypes = _transfer

_NONE = ctypes.c_void_p(-1).value
_READ, _WRITE = 0x80000000, 0x40000000
_SHARED = 1 | 2 | 4  # read, write, delete
_NEW, _EXISTING, _ALWAYS = 1, 3, 4
_PLAIN, _UNBUFFERED, _LINK_ITSELF = 0x80, 0x20000000, 0x00200000
_END = 38
_MOST = 1 << 30  # bytes in one call
_LOCKED = 1 << 43  # the byte that locks a file: behind any end, because nobody else may read what is locked
_PAUSE = 0.05


class _Overlapped(ctypes.Structure):
    _fields_ = (
        ("internal", ctypes.c_void_p),
        ("internal_high", ctypes.c_void_p),
        ("offset", ctypes.c_uint32),
        ("offset_high", ctypes.c_uint32),
        ("event", ctypes.c_void_p),
    )


def open_file(path: str | os.PathLike[str], flags: int, mode: int, *, follow: bool, more: int = 0) -> int:
    """See system.open_file. ``more`` are attributes for CreateFileW."""
    if not follow and os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    access = _READ | _WRITE if flags & os.O_RDWR else _WRITE if flags & os.O_WRONLY else _READ
    creation = _EXISTING
    if flags & os.O_CREAT:
        creation = _NEW if flags & os.O_EXCL else _ALWAYS
    name = os.fspath(os.path.abspath(path))
    long_name = name if name.startswith("\\\\") else "\\\\?\\" + name
    attributes = _PLAIN | more | (0 if follow else _LINK_ITSELF)
    handle = _calls.CreateFileW(long_name, access, _SHARED, None, creation, attributes, None)
    if handle == _NONE:
        raise _ctypes.WinError(_ctypes.get_last_error(), str(path))
    binary = getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)
    return int(_msvcrt.open_osfhandle(handle, flags & (os.O_APPEND | os.O_WRONLY | os.O_RDWR) | binary))


def open_direct(path: str | os.PathLike[str], flags: int, mode: int, *, follow: bool) -> int:
    """See system.open_direct."""
    return open_file(path, flags, mode, follow=follow, more=_UNBUFFERED)


def _at(call: Any, descriptor: int, address: int, length: int, offset: int) -> int:
    place = _Overlapped(None, None, offset & 0xFFFFFFFF, offset >> 32, None)
    moved = ctypes.c_uint32()
    handle = _msvcrt.get_osfhandle(descriptor)
    if not call(handle, address, min(length, _MOST), ctypes.byref(moved), ctypes.byref(place)):
        number = _ctypes.get_last_error()
        if number != _END:
            raise _ctypes.WinError(number)
    return moved.value


def read_at(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
    """See system.read_at."""
    done = 0
    for buffer in buffers:
        into = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        got = _at(_calls.ReadFile, descriptor, ctypes.addressof(into), len(buffer), offset + done)
        done += got
        if got < len(buffer):
            break
    return done


def write_at(descriptor: int, data: memoryview | bytes, offset: int) -> int:
    """See system.write_at."""
    view = memoryview(data)
    kind = ctypes.c_char * view.nbytes
    source = kind.from_buffer_copy(view) if view.readonly else kind.from_buffer(view)
    return _at(_calls.WriteFile, descriptor, ctypes.addressof(source), view.nbytes, offset)


def reserve(descriptor: int, offset: int, length: int) -> None:
    """See system.reserve. A file that grows has its room at once."""
    if os.fstat(descriptor).st_size < offset + length:
        os.ftruncate(descriptor, offset + length)


def is_foreign(status: os.stat_result) -> bool:
    """See system.is_foreign."""
    return False


def set_mode(descriptor: int, mode: int) -> None:
    """See system.set_mode."""


def expect_no_order(descriptor: int) -> None:
    """See system.expect_no_order."""


def keep_uncached(descriptor: int) -> None:
    """See system.keep_uncached."""


def expect(descriptor: int, offset: int, length: int) -> None:
    """See system.expect."""


def drop_cached(descriptor: int, offset: int, length: int) -> None:
    """See system.drop_cached."""


def sync_data(descriptor: int) -> None:
    """See system.sync_data."""
    os.fsync(descriptor)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """See system.sync_folder: the file system's own journal does it."""


def lock(descriptor: int, *, wait: bool) -> bool:
    """See system.lock."""
    while True:
        os.lseek(descriptor, _LOCKED, os.SEEK_SET)
        try:
            _msvcrt.locking(descriptor, _msvcrt.LK_NBLCK, 1)
            return True
        except OSError:
            if not wait:
                return False
        time.sleep(_PAUSE)  # its own waiting gives up after ten seconds


def unlock(descriptor: int) -> None:
    """See system.unlock."""
    os.lseek(descriptor, _LOCKED, os.SEEK_SET)
    _msvcrt.locking(descriptor, _msvcrt.LK_UNLCK, 1)


def name_drive(folder: str | os.PathLike[str]) -> str:
    """See system.name_drive."""
    return f"{os.stat(folder).st_dev:x}"
