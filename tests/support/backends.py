"""The ways of reading, for tests of whatever sits on them, and faults put between them and the kernel's answers."""

import errno
import os
from collections.abc import Callable

import pytest

from penstock.kernels.io import uring
from penstock.kernels.io.reading import BackendUnavailable, Reader, Threads
from penstock.kernels.io.uring import Uring

real_preadv, real_result = os.preadv, uring.take_result


class ThreadsBackend:
    """Reads with threads."""

    def make(self, depth: int) -> Reader:
        return Threads(depth)

    def fault(self, monkeypatch: pytest.MonkeyPatch, change: Callable[[int], int]) -> None:
        """Every count of bytes from the kernel passes through ``change`` from now on; it may give less, or raise."""
        monkeypatch.setattr(os, "preadv", lambda *request: change(unless_refused(lambda: real_preadv(*request))))


class UringBackend:
    """Reads with io_uring; skips the test where that cannot be."""

    def __init__(self) -> None:
        try:
            uring.probe()
        except BackendUnavailable as error:
            pytest.skip(str(error))

    def make(self, depth: int) -> Reader:
        return Uring(depth)

    def fault(self, monkeypatch: pytest.MonkeyPatch, change: Callable[[int], int]) -> None:
        """As ThreadsBackend.fault."""
        monkeypatch.setattr(uring, "take_result", lambda entry: change(unless_refused(lambda: real_result(entry))))


Backend = ThreadsBackend | UringBackend
BACKENDS: dict[str, type[Backend]] = {"threads": ThreadsBackend, "io_uring": UringBackend}


def unless_refused(read: Callable[[], int]) -> int:
    """What ``read`` answers; a buffer that the kernel refuses counts as nothing read."""
    try:
        return read()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return 0
