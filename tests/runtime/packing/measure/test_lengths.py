"""Lengths that an interrupted packing has kept: used again, and never believed where they cannot be right."""

import os
from pathlib import Path

import pytest

from penstock.kernels.formats.registry import FORMATS
from penstock.runtime.packing.arrange.formats import Choice
from penstock.runtime.packing.measure.lengths import KeptLengths
from penstock.tiering.store.bundle.journal import LENGTHS
from penstock.tiering.store.bundle.manifest import TensorSpec

FORMAT = next(name for name, format_ in FORMATS.items() if format_.planes == 1)
SPEC = TensorSpec("t", "float32", (4, 4), 0, 64)


class Found:
    """Finds out lengths, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, *_: object) -> tuple[int, ...]:
        self.asked += 1
        return (77,)


def ask(folder: Path) -> int:
    """How often lengths had to be found out; they are right in any case."""
    found = Found()
    kept = KeptLengths(folder, found)
    assert kept(SPEC, 3, Choice(FORMAT)) == (77,)
    kept.close()
    return found.asked


def test_what_was_found_out_is_known(tmp_path: Path) -> None:
    assert [ask(tmp_path) for _ in range(2)] == [1, 0]


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, "{}", "7", "NaN", '["t",3]', f'["t",3,"{FORMAT}",[1,2]]', f'["t",3,"{FORMAT}",[-1]]',
     f'["t",true,"{FORMAT}",[77]]', f'["t",3,"{FORMAT}",["77"]]', f'["t",3,"{FORMAT}",[{1 << 70}]]', '["t",3,[],[77]]'],
)  # fmt: skip
def test_a_line_of_another_kind_is_found_out_again(tmp_path: Path, line: str) -> None:
    ask(tmp_path)
    (tmp_path / LENGTHS).write_text(f"{line}\n")
    assert [ask(tmp_path) for _ in range(2)] == [1, 0]


@pytest.mark.parametrize("what", ["pipe", "link"])
def test_what_is_no_file_is_replaced(tmp_path: Path, what: str) -> None:
    (tmp_path / "another").write_text("precious")
    os.mkfifo(tmp_path / LENGTHS) if what == "pipe" else (tmp_path / LENGTHS).symlink_to(tmp_path / "another")
    assert [ask(tmp_path) for _ in range(2)] == [1, 0]
    assert (tmp_path / "another").read_text() == "precious"
