"""Threads that sleep while they wait, from one call to another."""

import os
import subprocess
import sys
import time

import pytest

from penstock.kernels.machine.wait_policy import wait_passively
from penstock.kernels.native import describe

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not describe().openmp or "clang" in describe().compiler,
    reason="GCC's OpenMP on Linux only",
)


def count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_it_goes_back_and_forth() -> None:
    before = count_threads()
    for _ in range(3):
        assert wait_passively(True)
        assert count_threads() > before + (os.cpu_count() or 1)
        assert wait_passively(True), "it holds already"
        assert not wait_passively(False)
        until = time.monotonic() + 60
        while count_threads() > before:  # they end after the thread that began them
            assert time.monotonic() < until
        assert not wait_passively(False)


CHILD = """
import os, sys
from penstock.kernels.machine.wait_policy import wait_passively
assert wait_passively(True)
child = os.fork()
if not child:
    os._exit(3 if wait_passively(False) else 0)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert not wait_passively(False)
wait_passively(True)  # and the process ends so
sys.exit(status)
"""


def test_a_child_has_not_what_its_parent_holds_and_the_end_is_the_end() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", CHILD], check=True, timeout=120)
