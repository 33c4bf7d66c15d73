"""Imports run one way: kernels <- tiering <- runtime <- penstock, and inside a part from later rooms to earlier ones.

Every kind of import counts: at the top of a module, inside functions, under TYPE_CHECKING.
"""

import ast
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOMS = {
    "kernels": [
        "kernels",
        "kernels.process",
        "kernels.memory",
        "kernels.io",
        "kernels.machine",
        "kernels.products",
        "kernels.modules",
        "kernels.formats",
        "kernels.cuda",
        "kernels.weights",
        "kernels.experts",
        "kernels.devices",
        "kernels.kv.summaries",
        "kernels.kv",
    ],
    "tiering": [
        "tiering",
        "tiering.policy.prefetch",
        "tiering.policy.eviction",
        "tiering.policy.placement",
        "tiering.policy",
        "tiering.planner",
        "tiering.driving",
        "tiering.kv.selection.kv_budget",
        "tiering.kv.selection",
        "tiering.kv",
        "tiering.prefix",
        "tiering.serving",
        "tiering.store.bundle",
        "tiering.store.prefixes",
        "tiering.sim",
    ],
    "runtime": [
        "runtime",
        "runtime.config",
        "runtime.machine",
        "runtime.checkpoints.files",
        "runtime.checkpoints.quantisation",
        "runtime.checkpoints",
        "runtime.tracing",
        "runtime.routing",
        "runtime.kv.pages",
        "runtime.kv.views",
        "runtime.kv.cache",
        "runtime.kv.attention",
        "runtime.kv.selectors",
        "runtime.kv",
        "runtime.tiers",
        "runtime.tiers.device",
        "runtime.experts",
        "runtime.modules",
        "runtime.engine",
        "runtime.packing.arrange",
        "runtime.packing.stream",
        "runtime.packing.measure",
        "runtime.packing",
        "runtime.prefixes.identity",
        "runtime.prefixes",
        "runtime.evaluation",
        "runtime.forecasting",
        "runtime.loading.openings",
        "runtime.loading",
        "runtime.planning",
        "runtime.serving",
        "runtime.serving.text",
        "runtime.server.web",
        "runtime.server.answers",
        "runtime.server.openai",
        "runtime.server.anthropic",
        "runtime.server.ollama",
        "runtime.server.dashboard",
        "runtime.server",
        "runtime.chat",
        "runtime.cli",
    ],
    "penstock": ["penstock"],
}
"""The rooms of each part, in order: a room imports itself, rooms before it, and earlier parts."""

PLACE = {room: place for place, room in enumerate(room for rooms in ROOMS.values() for room in rooms)}

IMPURE_ROOMS = ("tiering.driving", "tiering.store.bundle", "tiering.store.prefixes")
"""The rooms of tiering that do things. All others decide, with the standard library alone."""

EFFECTS = {"asyncio", "time", "random", "threading", "subprocess", "socket"}
"""Modules of the standard library that no deciding module imports."""


class Module:
    """One file of ours, by the name that it is imported under, less the leading ``penstock.``."""

    def __init__(self, path: Path) -> None:
        parts = path.relative_to(ROOT).with_suffix("").parts
        self.path, self.is_room = path, parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_room else parts)
        self.room = self.name if self.is_room else self.name.rpartition(".")[0]
        self.tree = ast.parse(path.read_text())
        lines = (ast.get_docstring(self.tree) or "").split("\n")
        self.says_pure = "(pure" in lines[0]


@cache
def modules() -> dict[str, Module]:
    found = (Module(path) for part in ROOMS for path in sorted((ROOT / part).rglob("*.py")))
    return {module.name: module for module in found}


@cache
def imported(module: Module) -> frozenset[str]:
    """Full names of all that a module imports, wherever in the file; ours without the leading ``penstock.``."""
    return frozenset(_imported(module))


def _imported(module: Module) -> Iterator[str]:
    package = ["penstock", *module.room.split(".")] if module.room != "penstock" else ["penstock"]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("penstock.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])]).removeprefix("penstock.")
            for alias in node.names:
                inner = alias.name if name == "penstock" else f"{name}.{alias.name}"
                yield inner if inner in modules() else name


def ours(module: Module) -> Iterator[Module]:
    """The modules of ours that ``module`` imports."""
    for name in imported(module):
        if name in modules():
            yield modules()[name]


def test_every_folder_is_a_room_of_the_list() -> None:
    assert {module.room for module in modules().values()} >= {"kernels", "tiering", "runtime", "penstock"}
    assert {module.room for module in modules().values()} - PLACE.keys() <= {"tiering.store"}


def test_imports_run_from_later_rooms_to_earlier_ones() -> None:
    wrong = {
        f"{module.name} imports {other.name}"
        for module in modules().values()
        for other in ours(module)
        if PLACE.get(other.room, -1) > PLACE.get(module.room, -1)
    }
    assert wrong == set()


def test_no_circle_of_files() -> None:
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, "a circle: " + " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in ours(modules()[name]):
                if other.name != name:
                    visit(other.name, (*way, name))
            done.add(name)

    for name in modules():
        visit(name, ())


def test_kernels_know_no_asyncio() -> None:
    assert not [
        module.name for module in modules().values() if "kernels" in module.room and "asyncio" in imported(module)
    ]


def is_pure(module: Module) -> bool:
    return module.says_pure or (module.name.startswith("tiering") and module.room not in IMPURE_ROOMS)


@pytest.mark.parametrize("name", [module.name for module in modules().values() if is_pure(module)])
def test_what_decides_is_pure(name: str) -> None:
    """Only the standard library without clocks, threads and chance, numpy, and modules that are pure themselves."""
    for other in imported(modules()[name]):
        if other in modules():
            allowed = is_pure(modules()[other]) or modules()[other].is_room
        else:
            first = other.split(".")[0]
            allowed = (first in sys.stdlib_module_names and first not in EFFECTS) or first == "numpy"
        assert allowed, f"{name} decides, but imports {other}"


def test_nothing_is_imported_by_its_folder_name() -> None:
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                assert not {"kernels", "tiering", "runtime"} & {alias.name.split(".")[0] for alias in node.names}, (
                    module.name
                )


def test_packages_are_those_of_pyproject() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {
        module.name if module.name == "penstock" else f"penstock.{module.name}"
        for module in modules().values()
        if module.is_room
    }
    assert sorted(there) == sorted(listed)


def test_a_part_holds_rooms_not_files() -> None:
    """At a part's top lie only its ``__init__`` and the few words that all rooms share."""
    for part, shared in {"kernels": 5, "tiering": 5, "runtime": 1}.items():
        assert len([*(ROOT / part).glob("*.py")]) <= shared + 1, part


def test_rooms_say_what_belongs_in_them() -> None:
    assert not [module.name for module in modules().values() if module.is_room and not ast.get_docstring(module.tree)]
