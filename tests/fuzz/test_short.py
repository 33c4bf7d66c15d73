"""Some random cases, on transformers' model and on Penstock's: the same outcome, or a PenstockError."""

from pathlib import Path

import pytest

from . import supervise
from .case import Case
from .play import play

SEEDS = (1, 5, 8, 9, 12, 14, 16, 23, 29, 30, 35, 37, 48, 53, 60, 63)
MANY = 300


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_case(seed: int, tmp_path: Path) -> None:
    case = Case.of(seed)
    report = play(case, tmp_path / "case")
    assert not report.finding, f"{report.where}: {report.finding}\n{case}"


@pytest.mark.soak
def test_many_random_cases(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert supervise.play_all([*range(MANY)], log) == 0, log.read_text()
