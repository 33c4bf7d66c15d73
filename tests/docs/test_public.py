"""Code in the documentation uses what is public."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import penstock
from tests.support.pages import DOCS, PAGES, blocks, name

PUBLIC = {"penstock", "penstock.sim", "penstock.routing", "penstock.serving"}


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of each import from penstock."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "penstock")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "penstock":
            yield from ((node.module or "", alias.name) for alias in node.names)


def chains(tree: ast.AST) -> Iterator[list[str]]:
    """Names that are joined by dots: ``model.penstock.stats`` is model, penstock, stats."""
    for node in ast.walk(tree):
        chain: list[str] = []
        while isinstance(node, ast.Attribute):
            chain.insert(0, node.attr)
            node = node.value
        if chain and isinstance(node, ast.Name):
            yield [node.id, *chain]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_imports_are_of_public_names(page: Path):
    for block in blocks(page.read_text("utf-8"), "python"):
        for module, each in imported(ast.parse(block)):
            assert module in PUBLIC, module
            assert not each or each in importlib.import_module(module).__all__, f"{module}.{each}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_of_the_package_and_the_handle_exist(page: Path):
    handle = {*dir(penstock.Handle), *penstock.Handle.__init__.__code__.co_names}  # those of its objects, too
    for block in blocks(page.read_text("utf-8"), "python"):
        for first, second, *rest in chains(ast.parse(block)):
            if first == "penstock":
                assert second in penstock.__all__, f"penstock.{second}"
            elif second == "penstock" and rest:
                assert rest[0] in handle, f"model.penstock.{rest[0]}"


def test_the_reference_has_every_public_name():
    """The errors and the two modules are shown as a whole."""
    page = (DOCS / "reference" / "python.md").read_text("utf-8")
    for each in penstock.__all__:
        value = getattr(penstock, each)
        if not (each == "__version__" or (isinstance(value, type) and issubclass(value, Exception))):
            assert f"::: penstock.{each}\n" in page, each
    assert "::: penstock.tiering.errors\n" in page
