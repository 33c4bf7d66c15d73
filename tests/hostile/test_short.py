"""Some changed files of every kind; many more in soak."""

from pathlib import Path

import pytest

from tests.hostile.play import KINDS
from tests.support import supervised


def check(cases: list[list[object]], log: Path) -> None:
    lines = supervised.play_all("tests.hostile", cases, log, hangs=120.0)
    assert [line for line in lines if line["finding"]] == []
    assert len(lines) == len(cases)


@pytest.mark.parametrize("kinds", [[*KINDS][part::3] for part in range(3)], ids=["one", "two", "three"])
def test_a_few(kinds: list[str], tmp_path: Path) -> None:
    check([[name, seed] for name in kinds for seed in range(3)], tmp_path / "log")


@pytest.mark.soak
@pytest.mark.parametrize("name", KINDS)
def test_many(name: str, tmp_path: Path) -> None:
    check([[name, seed] for seed in range(200)], tmp_path / "log")
