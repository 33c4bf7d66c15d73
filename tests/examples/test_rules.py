"""What holds for all examples: they use public names alone, and the table of examples/README.md lists them."""

import ast
from pathlib import Path

import pytest

from .conftest import EXAMPLES

PUBLIC = ("penstock.routing", "penstock.sim")


def test_the_readme_lists_every_example() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    files = [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]
    assert len(files) > 9
    assert [file.name for file in files if f"({file.name})" not in listed] == []


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda script: script.name)
def test_scripts_use_only_what_is_public(script: Path) -> None:
    tree = ast.parse(script.read_text())
    assert ast.get_docstring(tree), "it says what it shows"
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not [name for name in names if name.startswith("penstock.") and name not in PUBLIC], (
            f"line {node.lineno}"
        )
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), f"line {node.lineno}: .{node.attr}"
