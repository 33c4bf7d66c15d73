"""What is measured beside a busy program is doubtful."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from penstock.kernels.machine.core_use import read_core_use
from penstock.kernels.machine.machine import count_usable_cores
from penstock.runtime.machine.watch import Watch

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts this")

BUSY = "import os\nos.write(1, b'.')\nwhile True: pass"


@pytest.fixture
def busy() -> Iterator[None]:
    """As many busy programs as there are cores."""
    with ExitStack() as stack:
        for _ in range(count_usable_cores()):
            program = stack.enter_context(
                subprocess.Popen([sys.executable, "-S", "-c", BUSY], stdout=subprocess.PIPE, start_new_session=True)
            )
            stack.callback(program.kill)
            assert program.stdout is not None
            assert program.stdout.read(1) == b"."
        yield


def compute_until_others_ran(cores: float) -> None:
    """Compute until other programs have had a few tenths of a second of the cores."""
    before = read_core_use()
    assert before is not None
    while (now := read_core_use()) is not None and now.others - before.others < cores:
        sum(range(10_000))


def test_a_measurement_beside_busy_programs_is_doubtful(busy: None) -> None:
    watch = Watch(None)
    compute_until_others_ran(0.5)
    found = watch.done(0.1)
    assert "cores" in found.doubts
    assert found.others > 0.25
    assert found.spread == 0.1
    assert found.when == found.seen > 0


def test_spread_alone_is_a_doubt_and_no_number_is_impossible() -> None:
    found = Watch(Path("/no/where")).done(7.0, drive=True)
    assert "spread" in found.doubts
    assert found.spread == 0.99


def test_a_system_that_counts_nothing_gives_no_doubt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("penstock.runtime.machine.watch.read_core_use", lambda: None)
    monkeypatch.setattr("penstock.runtime.machine.watch.read_drive_use", lambda _: None)
    assert Watch(tmp_path).done(0.1, drive=True).doubts == ()
