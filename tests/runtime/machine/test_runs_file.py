"""Finished runs are kept: few, private, of this machine, and never misread."""

from pathlib import Path

import pytest

from penstock.runtime.machine import cachefile, runs_file
from penstock.tiering.policy.lessons import PerToken, Run

RUN = Run(1e9, 1 << 30, PerToken(0.5, 0.25, 0.125, 1000.0), 0.375, 0.75, False)


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def kept() -> Path:
    (file,) = cachefile.place("x").parent.glob("runs-*.json")
    return file


def test_runs_are_kept_by_model_and_threads_for_this_user_alone() -> None:
    assert runs_file.load("one", 1) == []
    runs_file.keep("one", 1, RUN)
    runs_file.keep("other", 1, RUN._replace(when=2e9, battery=True))
    assert runs_file.load("one", 1) == [RUN]
    assert runs_file.load("other", 1) == [RUN._replace(when=2e9, battery=True)]
    assert runs_file.load("one", 7) == []
    assert kept().stat().st_mode & 0o777 == 0o600


def test_the_file_does_not_grow_for_ever() -> None:
    for number in range(12):
        runs_file.keep("one", 1, RUN._replace(when=float(number)))
    assert [run.when for run in runs_file.load("one", 1)] == [float(number) for number in range(4, 12)]
    for number in range(runs_file.MOST + 3):
        runs_file.keep(f"model {number}", 1, RUN)
    assert runs_file.load("one", 1) == []
    assert runs_file.load(f"model {runs_file.MOST + 2}", 1) == [RUN]
    assert kept().read_text().count('"when"') <= runs_file.MOST


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ('"version": 1', '"version": 0'),
        ('"seconds": 0.5', '"seconds": 0.0'),
        ('"seconds": 0.5', '"seconds": NaN'),
        ('"seconds": 0.5', '"seconds": "0.5"'),
        ('"budget": 1073741824', '"budget": -1'),
        ('"bytes_read": 1000.0', '"bytes_read": 1e999'),
        ('"slow": 0.75', '"slow": 0.0'),
        ('"beside": false', '"beside": false, "more": 1'),
        ('"holds_for": "', '"holds_for": "another '),
        ("}", ""),
    ],
)
def test_what_is_damaged_or_cannot_be_counts_as_none(written: str, instead: str) -> None:
    runs_file.keep("one", 1, RUN)
    text = kept().read_text()
    assert written in text
    kept().write_text(text.replace(written, instead, 1))
    assert runs_file.load("one", 1) == []
    runs_file.keep("one", 1, RUN)
    assert runs_file.load("one", 1) == [RUN]


def test_a_file_that_others_could_have_written_counts_as_none() -> None:
    runs_file.keep("one", 1, RUN)
    kept().chmod(0o666)
    assert runs_file.load("one", 1) == []


def test_impossible_figures_are_not_kept() -> None:
    runs_file.keep("one", 1, RUN._replace(slow=0.0))
    assert not list(cachefile.place("x").parent.glob("runs-*"))
