"""What the system counts of threads and cores."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from penstock.kernels.machine.core_use import read_core_use

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts this")


def compute(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_thread_that_computes_is_seen() -> None:
    before = read_core_use()
    compute(0.2)
    after = read_core_use()
    assert before is not None
    assert after is not None
    me = threading.get_native_id()
    assert after.threads[me].run - before.threads[me].run >= 0.19
    assert after.now - before.now >= 0.2


def test_what_other_processes_run_is_told_apart() -> None:
    before = read_core_use()
    compute(0.3)
    program = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-S", "-c", program], check=True)
    after = read_core_use()
    assert before is not None
    assert after is not None
    assert after.others - before.others >= 0.4  # clock ticks of 10 ms, counted by sampling


def test_threads_that_end_meanwhile_are_left_out() -> None:
    ended = threading.Event()

    def start_and_end() -> None:
        while not ended.is_set():
            thread = threading.Thread(target=bool)
            thread.start()
            thread.join()

    starter = threading.Thread(target=start_and_end)
    starter.start()
    try:
        assert all(read_core_use() is not None for _ in range(200))
    finally:
        ended.set()
        starter.join()


def test_a_system_that_does_not_count_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.kernels.machine.core_use._ALL", Path("/no/where"))
    assert read_core_use() is None
