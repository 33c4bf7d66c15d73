"""Import paths that the documentation of the last release named."""

import importlib
import sys

import pytest

from penstock import _deprecated

NAMED = [
    ("penstock.runtime.recording", "recorded"),
    ("penstock.runtime.reference", "measure"),
    ("penstock.runtime.routes", "Routes"),
    ("penstock.tiering.sim.devices", "Drive"),
    ("penstock.tiering.sim.devices", "Memory"),
    ("penstock.tiering.sim.recording", "first_difference"),
    ("penstock.tiering.sim.rerun", "passes_of"),
    ("penstock.tiering.sim.simulator", "simulate"),
    ("penstock.tiering.sim.workload", "Workload"),
    ("penstock.tiering.sim.workload", "decode"),
    ("penstock.tiering.sim.workload", "guessing"),
    ("penstock.tiering.sim.workload", "layers_of"),
    ("penstock.tiering.units", "format_size"),
]
"""What a user may have copied from a page, or from examples/."""


@pytest.mark.parametrize(("module", "name"), NAMED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_paths_still_work(module: str, name: str):
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("module", _deprecated.MOVED)
def test_a_moved_module_says_what_to_use(module: str):
    new, instead = _deprecated.MOVED[module]
    name = next(name for old, name in NAMED if old == module)
    namespace: dict[str, object] = {}
    statement = compile(f"from {module} import {name}", __file__, "exec")
    with pytest.warns(DeprecationWarning, match=f"use {instead}") as caught:
        exec(statement, namespace)
    assert namespace[name] is getattr(importlib.import_module(new), name)
    assert caught[0].filename == __file__, "the line that imports is blamed"


def test_what_never_was_is_an_error():
    with pytest.raises(ImportError, match="no_such_name"):
        exec("from penstock.runtime.routes import no_such_name")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("penstock.runtime.no_such_module")


def test_it_is_installed_once():
    before = list(sys.meta_path)
    _deprecated.install()
    assert sys.meta_path == before
