"""Makes this process see the system as on Windows, and runs tests in it: its arguments are those of pytest.

What Windows has not is gone, and kernel32 and msvcrt are played by what Linux has. It is no Windows. But all that
penstock does through them is done, with their ways: handles, offsets in a structure, locks on a range of bytes.
"""

import ctypes
import errno
import fcntl as _fcntl
import mmap
import os
import shutil
import sys
import types
from typing import Any, NamedTuple

# What these libraries, which run on Windows, choose when they are imported is not the matter here.
import aiofiles.os  # noqa: F401
import psutil  # noqa: F401
import pytest
import torch  # noqa: F401
import transformers.modeling_utils  # noqa: F401

_open, _preadv, _pwrite, _statvfs = os.open, os.preadv, os.pwrite, os.statvfs
_END_OF_FILE, _EXISTS, _NOT_FOUND, _DENIED, _FULL, _WRONG = 38, 80, 2, 5, 112, 87
_ERRORS = {errno.EEXIST: _EXISTS, errno.ENOENT: _NOT_FOUND, errno.ENOSPC: _FULL, errno.EINVAL: _WRONG}
_NUMBERS = {number: code for code, number in _ERRORS.items()}
_last = [0]

GONE = (
    *("preadv", "pread", "pwrite", "pwritev", "readv", "writev", "posix_fadvise", "posix_fallocate", "fdatasync"),
    *("O_DIRECT", "O_NONBLOCK", "O_CLOEXEC", "O_NOFOLLOW", "O_NOCTTY", "O_DIRECTORY", "set_blocking", "fchmod"),
    *("geteuid", "statvfs", "fstatvfs", "sched_getaffinity", "eventfd", "fork", "register_at_fork"),
)
"""Names of os that Windows has not. It has neither getuid nor sysconf, but libraries need these here."""


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def _usage(place: Any) -> tuple[int, int, int]:
    status = _statvfs(place)
    free = status.f_bavail * status.f_frsize
    total = status.f_blocks * status.f_frsize
    return total, total - free, free


class _Kernel32:
    """Files, by handles that are 1000 above the descriptors here."""

    def __init__(self) -> None:
        self.CreateFileW = _function(self._create)
        self.ReadFile = _function(self._read)
        self.WriteFile = _function(self._write)

    def _create(
        self, name: str, access: int, share: int, _security: None, creation: int, attributes: int, _template: None
    ) -> int | None:
        assert share == 7, "others must be able to rename and remove it"
        assert name.startswith("\\\\?\\")
        flags = {0xC0000000: os.O_RDWR, 0x40000000: os.O_WRONLY, 0x80000000: os.O_RDONLY}[access]
        flags |= {1: os.O_CREAT | os.O_EXCL, 3: 0, 4: os.O_CREAT}[creation]
        flags |= 0x4000 if attributes & 0x20000000 else 0  # O_DIRECT
        try:
            return _open(name.removeprefix("\\\\?\\"), flags | 0x80000, 0o600) + 1000  # O_CLOEXEC
        except OSError as error:
            _last[0] = _ERRORS.get(error.errno or 0, _DENIED)
            return ctypes.c_void_p(-1).value

    def _read(self, handle: int, address: int, length: int, moved: Any, place: Any) -> bool:
        got = _preadv(handle - 1000, [(ctypes.c_char * length).from_address(address)], _offset(place))
        moved._obj.value = got
        if length and not got:
            _last[0] = _END_OF_FILE
        return got > 0 or not length

    def _write(self, handle: int, address: int, length: int, moved: Any, place: Any) -> bool:
        try:
            moved._obj.value = _pwrite(handle - 1000, (ctypes.c_char * length).from_address(address), _offset(place))
        except OSError as error:
            _last[0] = _ERRORS.get(error.errno or 0, _DENIED)
            return False
        return True


def _function(call: Any) -> Any:
    def function(*arguments: Any) -> Any:
        return call(*arguments)

    return function


def _offset(place: Any) -> int:
    return int(place._obj.offset) | int(place._obj.offset_high) << 32


def _win_error(number: int, name: str | None = None) -> OSError:
    code = _NUMBERS.get(number, errno.EACCES)
    return OSError(code, os.strerror(code), name)


def _locking(descriptor: int, mode: int, count: int) -> None:
    assert count == 1
    assert os.lseek(descriptor, 0, os.SEEK_CUR) > 1 << 40, "a locked byte cannot be read by others"
    try:
        _fcntl.flock(descriptor, _fcntl.LOCK_UN if mode == 0 else _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(errno.EACCES, "locked") from error


class _Map(mmap.mmap):
    """Windows takes no memory back in parts."""

    @property
    def madvise(self) -> Any:  # type: ignore[override]
        raise AttributeError("madvise")


def pretend() -> None:
    """From now on."""
    windows = types.ModuleType("msvcrt")
    vars(windows).update(
        LK_NBLCK=2,
        LK_UNLCK=0,
        locking=_locking,
        open_osfhandle=lambda handle, _: handle - 1000,
        get_osfhandle=lambda descriptor: descriptor + 1000,
    )
    sys.modules["msvcrt"] = windows
    for name in ("fcntl", "resource", "liburing", "pwd", "grp"):
        sys.modules[name] = None  # type: ignore[assignment]
    types_: Any = ctypes
    types_.WinDLL = lambda *_, **__: _Kernel32()
    types_.WinError, types_.get_last_error = _win_error, lambda: _last[0]
    for name in GONE:
        delattr(os, name)
    for name in [name for name in vars(mmap) if name.startswith(("MADV_", "MAP_", "PROT_"))]:
        delattr(mmap, name)
    shutil.disk_usage = lambda place: _Usage(*_usage(place))  # it asks os.statvfs, or Windows
    mmap.mmap = _Map  # type: ignore[misc]


class _Plugin:
    """Pretends when the plugins of pytest are loaded, and nothing of penstock is."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_load_initial_conftests(self) -> None:
        assert not [name for name in sys.modules if name.startswith("penstock.kernels")]
        pretend()


if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[1:], plugins=[_Plugin()]))
