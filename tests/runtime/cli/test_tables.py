"""Tables on a terminal of 80 columns: no number and no heading is broken."""

import contextlib
import os
import pty
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from penstock.runtime.cli import cache, eval, plan
from penstock.runtime.cli.tables import lay_out, print_table


def printed(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> list[str]:
    """The lines that ``act`` prints on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    ours, theirs = pty.openpty()
    with monkeypatch.context() as patch, os.fdopen(theirs, "w") as terminal:
        patch.setattr(sys, "stdout", terminal)
        act()
        assert Console(file=terminal).width == 80
    screen = b""
    with contextlib.suppress(OSError):  # Linux's way of saying that the other end is closed
        while piece := os.read(ours, 65536):
            screen += piece
    os.close(ours)
    return screen.decode().splitlines()


CURVE = ["host memory", "tokens/s", "per GiB", "first, s", "from flash", "hits", "limited by"]


def test_a_table_that_fits_is_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["1004.00 MiB", "1234.56", "+12345.67", "1234.56", "1004.00 MiB", "100%", "computing"]]
    lines = printed(monkeypatch, lambda: print_table("", CURVE, rows))
    assert len(lines) == 3
    assert all(heading in lines[0] for heading in CURVE)
    assert all(cell in lines[2] for cell in rows[0])
    assert max(map(len, lines)) <= 80


def test_what_is_too_wide_lies_on_its_side(monkeypatch: pytest.MonkeyPatch) -> None:
    quality = {"size_ratio": 0.5, "perplexity": 12345.678, "perplexity_change": 0.5, "kl_divergence": 0.12345}
    more = {"bytes": 2**40 - 1, "top1_agreement": 0.987, "tokens_per_second": 1234.5, "tokens": 9}
    rows = [{"format": name, **quality, **more} for name in ("as-is", "int4-128", "fit:3.2GiB")]
    report = {"text": "book.txt", "windows": 3, "context": 512}
    lines = printed(monkeypatch, lambda: eval._print(report, rows))
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["weights", "as-is", "int4-128", "fit:3.2GiB"]
    assert any(line.split() == ["KL", "divergence", "0.12345", "0.12345", "0.12345"] for line in lines)
    assert len(lines) == 10


def test_only_the_wide_column_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["llama-95b994a0e78faafa", "1024", "38.10 MiB", "2026-01-01 10:00", "seen again", "many words " * 9]]
    columns = ["model", "tokens", "size", "last used", "kept because", "text"]
    lines = printed(monkeypatch, lambda: print_table("", columns, rows, wide=5))
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith("llama-95b994a0e78faafa ")
    assert "2026-01-01 10:00" in lines[2]
    assert len(lines) > 3


def test_lay_out() -> None:
    rows = [["a", "12345"], ["b", "67890"]]
    assert lay_out(["x", "y"], rows, 8) == (["x", "y"], rows)
    assert lay_out(["x", "yyyyyyyyy"], rows, 11) == (["x", "yyyyyyyyy"], rows), "its side is no narrower"
    assert lay_out(["", "one", "two"], [["number", "1", "2"]], 16) == (["", "one", "two"], [["number", "1", "2"]])
    assert lay_out(["", "one", "two"], [["number", "1", "2"]], 15) == (("", "number"), [["one", "1"], ["two", "2"]])


def test_the_tables_of_commands_are_those() -> None:
    assert cache.print_table is plan.print_table is print_table


def test_what_others_wrote_is_shown_and_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["[red]a[/]", "\x1b]0;owned\x07b\x9b2J", "[/c]"]]
    lines = printed(monkeypatch, lambda: print_table("/my [/store] \x1b[2J[bold]", ["x", "y", "[/z]"], rows, wide=1))
    assert lines[0] == "/my [/store] [2J[bold]"
    assert lines[1].split() == ["x", "y", "[/z]"]
    assert lines[3].split() == ["[red]a[/]", "]0;ownedb2J", "[/c]"]
