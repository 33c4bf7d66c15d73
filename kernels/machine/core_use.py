"""How long threads and processes ran on the cores of this machine, and waited for one, as the system counts it."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_THREADS = Path("/proc/self/task")
_ALL = Path("/proc/stat")
_RUNNING = (1, 2, 3, 6, 7, 8)  # user, nice, system, irq, softirq, steal


class ThreadUse(NamedTuple):
    """Seconds that a thread has ``run``, and was ready to run and ``waited`` for a core."""

    run: float
    waited: float


class CoreUse(NamedTuple):
    """Counts up to monotonic time ``now`` in seconds: this process's ``threads`` by number, and the seconds that all
    cores ran for ``others`` than this process."""

    now: float
    threads: Mapping[int, ThreadUse]
    others: float


def read_core_use() -> CoreUse | None:
    """Read the counts as they are now, in a few tenths of a millisecond. None where the system does not tell them."""
    try:
        threads = {int(task): _read_thread(f"{_THREADS}/{task}/schedstat") for task in os.listdir(_THREADS)}
        counts = _ALL.read_text().split("\n", 1)[0].split()
        ran = sum(int(counts[place]) for place in _RUNNING) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    there = {number: use for number, use in threads.items() if use is not None}
    return CoreUse(time.monotonic(), there, ran - time.process_time())


def _read_thread(path: str) -> ThreadUse | None:
    try:
        with open(path, "rb", buffering=0) as file:
            run, waited, *_ = file.read(100).split()
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile, before it was opened or read
        return None
    return ThreadUse(int(run) / 1e9, int(waited) / 1e9)
