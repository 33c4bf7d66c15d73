"""What the tests of examples share: a home of their own, where bundles are packed once, and a way to run a script."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 300
"""After which a script hangs, even on a busy machine."""

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables of a user who has never run penstock, has no network, and computes on one core."""
    home = tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "PENSTOCK_"))}
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    return kept | places | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def start(environment: dict[str, str]) -> Start:
    """Start a script of examples/ in a process of its own, in which Ctrl-C works as in a terminal."""

    def start(name: str, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
            cwd=environment["HOME"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A test run in the background ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    return start


@pytest.fixture
def run(start: Start) -> Run:
    """Run a script to its end; what it printed, and its exit code."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        with start(name, *arguments) as process:
            try:
                out, err = process.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
