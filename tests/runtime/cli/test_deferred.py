"""Modules that are imported when they are first used."""

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from penstock.runtime.cli.deferred import Deferred, defer, load, when_loaded

PACKAGE = "a_package_to_defer"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that counts how often it is imported, with a submodule ``inner`` that needs it, and one that does
    not."""
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import builtins\nbuiltins.counted = getattr(builtins, 'counted', 0) + 1\n"
        "from . import inner\nvalue = 5\ndef double(x):\n    return 2 * x\n"
    )
    (folder / "inner.py").write_text(f"import {PACKAGE}\nother = 6\n")
    (folder / "apart.py").write_text("alone = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.counted", 0, raising=False)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def counted() -> int:
    return __builtins__["counted"] if isinstance(__builtins__, dict) else __builtins__.counted


def test_a_module_is_imported_when_something_of_it_is_used(package: Path) -> None:
    defer(PACKAGE, {})
    module = importlib.import_module(PACKAGE)
    assert (type(module), counted()) == (Deferred, 0)
    assert module.value == 5
    assert (type(module), counted(), sys.modules[PACKAGE] is module) == (ModuleType, 1, True)
    assert (module.inner.other, module.__name__, module.__path__) == (6, PACKAGE, [str(package)])
    with pytest.raises(AttributeError, match="nothing"):
        module.nothing  # noqa: B018
    assert importlib.reload(module) is module


def test_stand_ins_serve_until_then(package: Path) -> None:
    defer(PACKAGE, {"double": lambda module: lambda x: -x})
    module = importlib.import_module(PACKAGE)
    calls: list[int] = []
    when_loaded(module, lambda: calls.append(module.value))
    assert (module.double(4), counted(), calls) == (-4, 0, [])
    load(module)
    load(module)
    assert (module.double(4), counted(), calls) == (8, 1, [5])


def test_a_submodule_imports_the_package_first(package: Path) -> None:
    defer(PACKAGE, {})
    assert importlib.import_module(f"{PACKAGE}.inner").other == 6
    assert (type(sys.modules[PACKAGE]), counted()) == (ModuleType, 1)


def test_a_submodule_is_deferred_as_well(package: Path) -> None:
    """It is an attribute of its package, as after an import."""
    defer(f"{PACKAGE}.apart", {"alone": lambda module: 0})
    parent = sys.modules[PACKAGE]
    assert (type(parent.apart), parent.apart.alone) == (Deferred, 0)
    load(parent.apart)
    assert (type(parent.apart), parent.apart.alone) == (ModuleType, 7)


def test_submodules_apart_do_not(package: Path) -> None:
    defer(PACKAGE, {}, apart=["apart", "gone"])
    assert importlib.import_module(f"{PACKAGE}.apart").alone == 7
    assert (type(sys.modules[PACKAGE]), counted()) == (Deferred, 0)
    assert importlib.import_module(f"{PACKAGE}.inner").other == 6
    assert counted() == 1


def test_a_name_from_the_module(package: Path) -> None:
    defer(PACKAGE, {})
    found: dict[str, object] = {}
    exec(f"from {PACKAGE} import value, inner", found)
    assert (found["value"], counted()) == (5, 1)


def test_an_import_that_fails_is_tried_again(package: Path) -> None:
    source = (package / "__init__.py").read_text()
    (package / "__init__.py").write_text(source + "raise RuntimeError('not yet')\n")
    defer(PACKAGE, {})
    module = importlib.import_module(PACKAGE)
    with pytest.raises(RuntimeError, match="not yet"):
        module.nothing  # noqa: B018
    assert type(module) is Deferred
    (package / "__init__.py").write_text(source + "nothing = 8\n")
    assert (module.nothing, type(module)) == (8, ModuleType)


def test_threads_import_it_once(package: Path) -> None:
    started, go_on = threading.Event(), threading.Event()
    sys.modules["pausing_for_a_test"] = pausing = ModuleType("pausing_for_a_test")
    pausing.pause = lambda: (started.set(), go_on.wait())  # type: ignore[attr-defined]
    source = (package / "__init__.py").read_text()
    (package / "__init__.py").write_text("import pausing_for_a_test\npausing_for_a_test.pause()\n" + source)
    defer(PACKAGE, {})
    module = importlib.import_module(PACKAGE)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(module.value)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.wait(30)
    go_on.set()
    for thread in threads:
        thread.join(30)
    del sys.modules["pausing_for_a_test"]
    assert (found, counted()) == ([5, 5, 5], 1)


def test_what_is_imported_or_not_there_is_left_alone(package: Path) -> None:
    module = importlib.import_module(PACKAGE)
    defer(PACKAGE, {})
    defer("no_package_of_this_name", {})
    assert sys.modules[PACKAGE] is module
    assert "no_package_of_this_name" not in sys.modules
