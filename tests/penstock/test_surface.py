"""The public names: they are there, they say what they are, and importing them is quick."""

import inspect
import subprocess
import sys

import pytest

import penstock
import penstock.routing
import penstock.serving
import penstock.sim


@pytest.mark.parametrize(
    "module", [penstock, penstock.sim, penstock.routing, penstock.serving], ids=lambda module: module.__name__
)
def test_every_public_name_is_there_and_described(module):
    assert list(module.__all__) == sorted(module.__all__)
    for name in module.__all__:
        found = getattr(module, name)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert inspect.getdoc(found), name
    assert set(module.__all__) <= set(dir(module))


def test_dir_shows_what_is_public_and_nothing_else():
    assert {name for name in dir(penstock) if not name.startswith("__")} == {*penstock.__all__} - {"__version__"}


def test_the_surface_of_the_design():
    names = {
        "load",
        "wrap",
        "plan",
        "handle",
        "tokenizer",
        "Config",
        "Handle",
        "Stats",
        "Trace",
        "sim",
        "routing",
        "PenstockError",
    }
    assert names <= set(penstock.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        penstock.lod  # noqa: B018


@pytest.mark.parametrize("imported", ["penstock", "penstock.sim"])
def test_importing_is_quick(imported: str):
    """Neither loads torch: the command line answers at once, and simulating needs none."""
    code = f"import sys, {imported}; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "[]\n"
