"""``make sanitize`` says what is missing where it cannot run."""

from pathlib import Path

import pytest

from tests.sanitize import __main__ as sanitize
from tests.sanitize.build import NoSanitizer, build


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that compiles nothing, and that comes without sanitizers."""
    path = tmp_path / "compiler"
    path.write_text('#!/bin/sh\ncase "$1" in --version) echo gcc 12;; *) echo "${1#-print-file-name=}";; esac\n')
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))
    return path


def test_a_compiler_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    with pytest.raises(NoSanitizer, match="no compiler no-such-compiler: install GCC or Clang"):
        build(tmp_path)


def test_a_compiler_without_sanitizers_is_named_with_what_to_install(compiler: Path, tmp_path: Path) -> None:
    with pytest.raises(NoSanitizer, match=rf"{compiler} comes without libasan.so: install libasan"):
        build(tmp_path / "built")


def test_the_command_says_so_in_one_line(compiler: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize.main(["plain"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
