"""Plays many cases of this fuzzer in processes."""

import tempfile
from pathlib import Path
from typing import Any

from tests.support import supervised

HANGS = 200.0
"""Seconds without a line after which a process counts as one that hangs."""


def work(seeds: list[int]) -> None:
    """Play the cases of ``seeds`` here."""
    from .case import Case
    from .play import play

    def played(seed: int) -> dict[str, Any]:
        case = Case.of(seed)
        with tempfile.TemporaryDirectory() as folder:
            report = play(case, Path(folder) / "case")
        return vars(report) | ({"written": str(case)} if report.finding else {})

    supervised.work(seeds, played)


def play_all(seeds: list[int], log: Path | None) -> int:
    """Play the cases of ``seeds``, and write a line for each to ``log``; the number of findings."""
    return sum(bool(line["finding"]) for line in supervised.play_all("tests.fuzz", seeds, log, hangs=HANGS))
