"""Packing, loading, verifying and deleting at the same time: each is right, or says in one line what happened."""

from pathlib import Path

import pytest

from tests.hostile.races import Race, is_fine


def check(race: Race, rounds: range) -> None:
    found = {(seed, who): outcome for seed in rounds for who, outcome in race.round(seed).items()}
    assert [item for item in found.items() if not is_fine(item[1])] == []
    assert "right" in {outcome for (_, who), outcome in found.items() if "load" in who}


def test_rounds(tmp_path: Path) -> None:
    check(Race(tmp_path), range(5))


def test_rounds_on_two_drives(tmp_path: Path) -> None:
    check(Race(tmp_path, stripes=True), range(5))


@pytest.mark.soak
@pytest.mark.parametrize("stripes", [False, True])
def test_many_rounds(tmp_path: Path, stripes: bool) -> None:
    check(Race(tmp_path, stripes=stripes), range(500))
