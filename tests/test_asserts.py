"""Asserts stand for what cannot be, never for what a user does: they are counted, so that each new one is looked at.

A new assert that cannot fail, whatever is called from outside: raise the number of its file here. Anything else is a
PenstockError with one clear sentence. ``python -O`` leaves asserts out, so they must change nothing.
"""

import ast
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("kernels", "tiering", "runtime", "penstock")

INVARIANTS = "check_integrity"
"""In functions of this name any number may stand: they check accounts, for tests."""

KNOWN = {
    "kernels/cuda/lossless.py": 2,
    "tiering/kv/books.py": 2,
    "tiering/kv/device_pages.py": 2,
    "tiering/kv/memory.py": 1,
    "tiering/kv/writes.py": 2,
    "tiering/planner/freelist.py": 7,
    "tiering/planner/planner.py": 1,
    "tiering/planner/residency.py": 6,
    "tiering/policy/eviction/counts.py": 1,
    "tiering/policy/eviction/windowed.py": 1,
    "tiering/policy/placement/memory_governor.py": 1,
    "tiering/policy/placement/memory_split.py": 1,
    "tiering/policy/placement/shrinking.py": 1,
    "tiering/store/bundle/drive_writer.py": 1,
    "tiering/store/bundle/reader.py": 1,
    "tiering/store/bundle/writer.py": 3,
    "tiering/store/prefixes/prefix_file.py": 1,
}
"""Asserts by file, without those that only tell the type checker what is there (``is not None``, ``isinstance``)."""

PURE = {"all", "isinstance", "len", "set"} | {"evictable", "slot"}
"""Functions that an assert may call, and methods that only look."""


def asserts() -> Iterator[tuple[str, ast.Assert]]:
    """Each assert with its file, but those in ``check_integrity``."""
    for part in PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            tree = ast.parse(path.read_text("utf-8"))
            checked = {
                inside
                for function in ast.walk(tree)
                if isinstance(function, ast.FunctionDef) and function.name == INVARIANTS
                for inside in ast.walk(function)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.Assert) and node not in checked:
                    yield path.relative_to(ROOT).as_posix(), node


def only_narrows(node: ast.expr) -> bool:
    """Whether the type checker needs the assert, which the line before makes true."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "isinstance"
    return (
        isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.IsNot)
        and isinstance(node.comparators[0], ast.Constant)
        and node.comparators[0].value is None
    )


def test_each_assert_is_known() -> None:
    found = Counter(path for path, node in asserts() if not only_narrows(node.test))
    assert dict(found) == KNOWN


def test_asserts_change_nothing() -> None:
    for path, node in asserts():
        for inside in ast.walk(node.test):
            assert not isinstance(inside, ast.NamedExpr), f"{path}:{node.lineno}"
            if isinstance(inside, ast.Call):
                name = inside.func.id if isinstance(inside.func, ast.Name) else getattr(inside.func, "attr", "")
                assert name in PURE, f"{path}:{node.lineno} calls {name}"


def test_without_asserts_everything_is_as_with_them(tmp_path: Path) -> None:
    """A model streams, plans and fails the same."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-O", "-W", "ignore", "-m", "tests.support.without_asserts_child", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\nplanned\nBudgetTooSmall\nClosed\n"
