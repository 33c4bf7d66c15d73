"""Code, configuration and command lines that the documentation shows are possible."""

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import reference
import typer

from penstock.runtime.cli.main import make_app
from penstock.runtime.config.config import Config
from tests.support.pages import PAGES, blocks, name

COMMANDS = dict(reference.leaves(typer.main.get_command(make_app()), "penstock"))

NUMBERS = {"N": "64", "TOKENS": "64"}
"""What stands for a number where a page shows the usage of a command."""


def shown(text: str) -> list[str]:
    """The command lines of penstock in a page, without their comments."""
    lines = [line for block in blocks(text, "") for line in block.splitlines() if line.startswith("penstock ")]
    return [re.sub(r"\s+#.*", "", line) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_compiles(page: Path):
    for block in blocks(page.read_text("utf-8"), "python"):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_configurations_are_right(page: Path):
    for block in blocks(page.read_text("utf-8"), "toml"):
        Config(**tomllib.loads(block))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_command_lines_parse(page: Path):
    for line in shown(page.read_text("utf-8")):
        if " | " in line:
            for command in line.removeprefix("penstock ").split(" | "):
                assert any(full.startswith(f"penstock {command}") for full in COMMANDS), line
        else:
            words = [word.strip("[]") for word in shlex.split(line)]
            parse([NUMBERS.get(word, word) for word in words], line)


def parse(words: list[str], line: str) -> None:
    full = next((full for full in (" ".join(words[:3]), " ".join(words[:2])) if full in COMMANDS), None)
    assert full, f"no such command: {line}"
    with COMMANDS[full].make_context(full, words[len(full.split()) :]):
        pass


def test_some_of_each_are_shown():
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    assert len(shown(text)) > 30
    assert len(list(blocks(text, "python"))) > 10
    assert len(list(blocks(text, "toml"))) > 10
