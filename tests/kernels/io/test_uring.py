"""What only io_uring meets: a kernel without room, and one that forbids it."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.kernels.io import uring
from penstock.kernels.io.backends import list_usable, open_reader
from penstock.kernels.io.directio import DirectFile
from penstock.kernels.io.reading import BackendUnavailable
from penstock.kernels.io.uring import Uring
from penstock.kernels.memory.arena import Arena
from penstock.kernels.memory.page import PAGE
from tests.support.backends import BACKENDS
from tests.support.reads import Outcome, joined, segments_of


def test_a_kernel_without_room_is_asked_again(
    file: DirectFile, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = BACKENDS["io_uring"]().make(2)
    api = uring._liburing()
    real, refusals = api.io_uring_submit, iter([errno.EBUSY, errno.EINTR, errno.EAGAIN, 0, -1])

    def submit(ring: object) -> int:
        if (number := next(refusals, -1)) > 0:
            raise OSError(number, os.strerror(number))
        return 0 if number == 0 else int(real(ring))

    monkeypatch.setattr(api, "io_uring_submit", submit)
    segments, outcome = segments_of(Arena(4 * PAGE), 0, [2]), Outcome()
    reader.submit(file, segments, outcome)
    assert outcome.get() is None
    assert joined(segments) == content[: 2 * PAGE]
    reader.close()


# --- where it cannot be used ----------------------------------------------------------------------------------------

SYSCTL = Path("/proc/sys/kernel/io_uring_disabled")

FORBID = """
import ctypes, struct, sys
number, answer = {number}, {answer}
def op(code, jt, jf, k): return struct.pack("HBBI", code, jt, jf, k)
program = op(0x20, 0, 0, 0) + op(0x15, 0, 1, number) + op(0x06, 0, 0, 0x00050000 | answer) + op(0x06, 0, 0, 0x7FFF0000)
buffer = ctypes.create_string_buffer(program)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
if libc.prctl(22, 2, ctypes.byref(Filter(4, ctypes.addressof(buffer))), 0, 0):
    print("no seccomp")
    sys.exit()
from penstock.kernels.io import uring
from penstock.kernels.io.reading import BackendUnavailable
try:
    uring.probe()
    print("works")
except BackendUnavailable as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("number", "answer", "says"),
    [
        (425, errno.EPERM, "forbids"),
        (425, errno.ENOSYS, "none"),
        (425, errno.ENOMEM, "locked"),
        (427, errno.EACCES, ""),
    ],
    ids=["EPERM", "ENOSYS", "ENOMEM", "register"],
)
def test_a_seccomp_filter_is_named(number: int, answer: int, says: str) -> None:
    pytest.importorskip("liburing")
    script = FORBID.format(number=number, answer=int(answer))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    if done.stdout.strip() == "no seccomp":
        pytest.skip("no seccomp filters here")
    assert done.stdout.startswith("io_uring cannot be used here")
    assert says in done.stdout


def test_the_kernels_own_switch_is_named() -> None:
    pytest.importorskip("liburing")
    if not os.access(SYSCTL, os.W_OK):
        pytest.skip(f"{SYSCTL} cannot be written")
    before = SYSCTL.read_text()
    try:
        try:
            SYSCTL.write_text("2")
        except OSError as error:
            pytest.skip(f"{SYSCTL} cannot be written: {error}")
        with pytest.raises(BackendUnavailable, match="io_uring_disabled"):
            uring.probe()
        with pytest.raises(BackendUnavailable):
            Uring(4)
        assert "io_uring" not in list_usable()
        with pytest.raises(BackendUnavailable):
            open_reader("io_uring", 2)
    finally:
        SYSCTL.write_text(before)


def test_a_backend_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="'mmap'; choose one of threads, io_uring, buffered"):
        open_reader("mmap", 2)


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liburing", None)
    with pytest.raises(BackendUnavailable, match=r"penstock\[uring\]"):
        uring.probe()
