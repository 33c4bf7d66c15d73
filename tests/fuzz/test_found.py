"""Cases that found something once (found.jsonl): they find nothing any more."""

import json
from pathlib import Path

import pytest

from .case import Case
from .play import play

FOUND = [json.loads(line) for line in (Path(__file__).parent / "found.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("found", [pytest.param(each, id=each["was"]) for each in FOUND])
def test_what_was_found_is_mended(found: dict[str, object], tmp_path: Path) -> None:
    report = play(Case.read(json.dumps(found["case"])), tmp_path / "case")
    assert not report.finding, f"{report.where}: {report.finding}"
