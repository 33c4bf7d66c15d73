"""Lists of buffers for liburing, with the release that the package forgets."""

import ctypes
import sys
from collections.abc import Sequence
from typing import Any


class _Buffer(ctypes.Structure):
    """Python's Py_buffer, as in its stable ABI."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get, _release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
_get.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int)
_release.argtypes = (ctypes.POINTER(_Buffer),)
_release.restype = None


class Iovecs:
    """Makes the list of buffers for a read.

    liburing (2026.3.30) takes a buffer from each memoryview and never releases it, so that every read would keep its
    memory for ever. The number of forgotten buffers is measured once, and is none in a repaired version. These are
    released here.
    """

    def __init__(self, api: Any) -> None:
        """``api`` is the liburing module."""
        self._make = api.Iovec
        trial = memoryview(bytearray(1))
        before = sys.getrefcount(trial)
        self._make([trial])
        self._forgotten = sys.getrefcount(trial) - before
        for _ in range(self._forgotten):
            _release_one_more(trial)

    def __call__(self, views: Sequence[memoryview]) -> Any:
        """Make a list of ``views``. Each view has to live as long as the list is used."""
        vector = self._make(list(views))
        for view in views:
            for _ in range(self._forgotten):
                _release_one_more(view)
        return vector


def _release_one_more(view: memoryview) -> None:
    """Release a buffer of ``view`` that was taken and forgotten. Any of them will do."""
    taken = _Buffer()
    _get(view, ctypes.byref(taken), 0)
    forgotten = _Buffer.from_buffer_copy(taken)
    _release(ctypes.byref(taken))
    _release(ctypes.byref(forgotten))
