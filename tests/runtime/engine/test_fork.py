"""A model in a forked child: a clear error at once, and the parent goes on unharmed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.backends import BACKENDS
from tests.support.logits import least_budget


@pytest.mark.parametrize(
    ("backend", "scenarios"),
    [("threads", ("refused", "paged", "busy", "loads", "workers")), ("io_uring", ("busy", "loads"))],
)
def test_fork(tiny_dense_folder: Path, store: Path, tmp_path: Path, backend: str, scenarios: tuple[str, ...]) -> None:
    BACKENDS[backend]()  # skips where there is none
    budget = least_budget(tiny_dense_folder, store)
    given = (",".join(scenarios), tiny_dense_folder, store, budget, backend, tmp_path)
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.forking_child", *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [*scenarios], "")
