"""Every script of bench/ can be imported, explains itself, and is listed in bench/README.md."""

import ast
import importlib
from pathlib import Path

import pytest

from .conftest import BENCH, Run

SCRIPTS = sorted(BENCH.glob("*.py"))
COMMANDS = [script for script in SCRIPTS if "def main(" in script.read_text()]
by_name = {"ids": lambda script: script.name}


def test_there_are_as_many_as_ever() -> None:
    assert len(SCRIPTS) >= 36
    assert len(COMMANDS) >= 25


@pytest.mark.parametrize("script", SCRIPTS, **by_name)
def test_every_import_of_penstock_finds_what_it_names(script: Path) -> None:
    """Those inside of functions too, which nobody sees before they run."""
    importlib.import_module(script.stem)
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "penstock":
            module = importlib.import_module(node.module or "")
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"line {node.lineno}: {node.module} has no {missing}"


@pytest.mark.parametrize("script", COMMANDS, **by_name)
def test_help_says_what_it_measures(script: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    first = (ast.get_docstring(ast.parse(script.read_text())) or "").splitlines()[0]
    shown = run(script.name, "--help")
    assert first
    assert first in shown
    assert f"python bench/{script.name} " in shown, "a command to copy"


def test_the_readme_names_every_script() -> None:
    text = (BENCH / "README.md").read_text()
    assert [script.name for script in SCRIPTS if script.name not in text] == []


def test_paths_in_the_readme_are_there() -> None:
    text = (BENCH / "README.md").read_text()
    paths = {word.strip("`") for word in text.split() if word.strip("`").startswith(("docs/", "bench/", "../"))}
    assert len(paths) > 20
    assert [path for path in sorted(paths) if not (BENCH.parent / path).exists()] == []
