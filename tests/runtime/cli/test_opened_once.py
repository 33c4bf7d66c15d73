"""A checkpoint is opened once, whichever command looks at its small files before the model is loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock
from penstock.runtime.checkpoints.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("elsewhere")

TEXT = " ".join(f"w{5 + n % 200}" for n in range(80))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The folders of the checkpoints that are opened."""
    found: list[Path] = []
    real = Checkpoint.open

    def open_(source: Any, **options: Any) -> Checkpoint:
        checkpoint = real(source, **options)
        found.append(checkpoint.folder)
        return checkpoint

    monkeypatch.setattr(Checkpoint, "open", open_)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "-p", "w5 w6", "-n", "1"),
        ("bench", "-n", "1"),
        ("pack",),
        ("pack", "--text", "text", "--weights-format", "int8"),
        ("profile", "--text", "text"),
        ("eval", "--text", "text", "--weights-format", "int8"),
        ("cache", "save", "--text", "text"),
        ("plan",),
    ],
    ids=lambda arguments: " ".join(arguments[:3:2]),
)
def test_commands_open_a_checkpoint_once(run, checkpoint, opened, quick, tmp_path, arguments):
    (tmp_path / "text").write_text(TEXT)
    command = 2 if arguments[0] == "cache" else 1
    code, _, err = run(*arguments[:command], checkpoint, *arguments[command:])
    assert (code, err) == (0, "")
    assert opened == [checkpoint]


def test_load_opens_a_checkpoint_once(checkpoint, opened, tmp_path):
    for _ in range(2):  # the second time it is packed already
        penstock.load(checkpoint, store=tmp_path / "store").penstock.close()
        assert opened == [checkpoint]
        opened.clear()
