"""The guided fuzzer of files: honest seeds, mutations that keep JSON JSON, and some seconds of it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.tiering.errors import CheckpointError
from tests.hostile import guided
from tests.hostile.mutators import SPLITS, mutate
from tests.hostile.seeds import SEEDS
from tests.hostile.targets import TARGETS, guarded

targets = pytest.mark.parametrize("name", TARGETS)
needs_atheris = pytest.mark.skipif(not guided.is_there(), reason=guided.MISSING)
QUICK = ("manifest", "prefix")


@targets
def test_seeds_are_read_without_an_error(name: str) -> None:
    target = TARGETS[name]()
    for seed in SEEDS[name]():
        target(seed)


LINES = ("recording", "journal")


@pytest.mark.parametrize("name", sorted(set(SPLITS) - set(LINES)))
def test_documents_stay_documents(name: str) -> None:
    kept = 0
    for number, seed in enumerate(SEEDS[name]() * 40):
        made = mutate(SPLITS[name], lambda data, most: b"", seed, 4096, number)
        assert len(made) <= 4096
        if made:
            json.loads(SPLITS[name](made).document)
            kept += made != seed
    assert kept > 5


@pytest.mark.parametrize("name", LINES)
def test_one_line_is_changed(name: str) -> None:
    changed = 0
    for number, seed in enumerate(SEEDS[name]() * 40):
        if made := mutate(SPLITS[name], lambda data, most: b"", seed, 4096, number):
            pairs = [*zip(made.split(b"\n"), seed.split(b"\n"), strict=True)]
            differing = [after for after, before in pairs if after != before]
            assert len(differing) <= 1
            for line in differing:
                json.loads(line)
            changed += len(differing)
    assert changed > 5


def test_only_what_is_documented_may_leave_a_target() -> None:
    def raises(error: Exception) -> None:
        def target(data: bytes) -> None:
            raise error

        guarded(target)(b"")

    raises(CheckpointError("one line"))
    with pytest.raises(KeyError):
        raises(KeyError("key"))


def test_without_atheris_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    assert guided.main(["--all"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert ".[fuzz]" in said


def fuzz(name: str, seconds: int, folder: Path) -> None:
    options = [name, f"-max_total_time={seconds}", "-verbosity=0", "--folder", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.guided", *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    ran = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert ran is not None
    assert int(ran[1]) > 100


@needs_atheris
@pytest.mark.parametrize("name", QUICK)
def test_some_seconds_find_nothing(name: str, tmp_path: Path) -> None:
    fuzz(name, 5, tmp_path)


@needs_atheris
@pytest.mark.soak
@targets
def test_minutes_find_nothing(name: str, tmp_path: Path) -> None:
    fuzz(name, 120, tmp_path)
