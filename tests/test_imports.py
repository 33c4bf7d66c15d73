"""Imports run one way: kernels <- tiering <- runtime <- penstock; the deciding half needs the standard library only."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "kernels": {"kernels"},
    "tiering": {"kernels", "tiering"},
    "runtime": {"kernels", "tiering", "runtime"},
    "penstock": {"kernels", "tiering", "runtime", "penstock"},
}
DOING = {"driver.py", "beside.py", "ports.py", "fakes.py", "store"}
"""What in tiering does things; all the rest decides."""
ALSO_PURE = [ROOT / "tiering" / "store" / "manifest.py"]


def modules(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of the modules that ``path`` imports, wherever in the file; its own package is ``penstock.*``."""
    package = ["penstock", *path.relative_to(ROOT).parent.parts]
    if package[1:2] == ["penstock"]:
        package = package[1:]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name} if node.module else {f"{name}.{alias.name}" for alias in node.names}
    return found


def ours(name: str) -> str | None:
    """The part of penstock that a module belongs to."""
    names = name.split(".")
    if names[0] != "penstock":
        return None
    return names[1] if len(names) > 1 and names[1] in MAY_IMPORT else "penstock"


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_run_one_way(part: str) -> None:
    for path in modules(part):
        for name in imported(path):
            assert ours(name) is None or ours(name) in MAY_IMPORT[part], f"{path.relative_to(ROOT)} imports {name}"


def test_kernels_know_no_asyncio() -> None:
    assert not [path for path in modules("kernels") if "asyncio" in imported(path)]


def test_deciding_half_is_pure() -> None:
    tiering = ROOT / "tiering"
    deciding = [path for path in modules("tiering") if path.relative_to(tiering).parts[0] not in DOING] + ALSO_PURE
    assert len(deciding) > 10
    for path in deciding:
        for name in imported(path):
            allowed = ours(name) == "tiering" or (
                name.split(".")[0] in sys.stdlib_module_names and name not in {"asyncio", "time", "random", "threading"}
            )
            assert allowed, f"{path.relative_to(ROOT)} decides, but imports {name}"


def test_nothing_is_imported_by_its_folder_name() -> None:
    for part in MAY_IMPORT:
        for path in modules(part):
            assert not {"kernels", "tiering", "runtime"} & {name.split(".")[0] for name in imported(path)}, path
