"""The source distribution and the wheel, as a stranger builds and installs them."""

import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import penstock
from penstock.kernels.isa import LEVELS
from tests.packaging.test_contents import PARTS, ROOT
from tests.support.build_wheels import build_sdist, build_wheel, copy_of_tree, fresh_environment, run

MODEL = ROOT / "examples" / "tiny-moe"
CHILD = ROOT / "tests" / "support" / "installed_child.py"
PAGE = (".html", ".css", ".js", ".svg")
"""What the page of a server is made of."""
NO_COMPILER = "/nonexistent/cc"

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="the kernels need GCC or Clang"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build with"),
]

Install = Callable[[Path], Callable[[], dict[str, Any]]]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    return build_sdist(copy_of_tree(folder / "tree"), folder)


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Installs a wheel where there is no compiler; what is returned runs the demo's model there."""

    def install(wheel: Path) -> Callable[[], dict[str, Any]]:
        python = fresh_environment(tmp_path / "environment", wheel)
        empty = tmp_path / "empty"
        empty.mkdir()

        def model() -> dict[str, Any]:
            environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
            environment |= {"PATH": str(empty), "CC": NO_COMPILER, "XDG_CACHE_HOME": str(tmp_path / "cache")}
            command = [str(python), str(CHILD), str(MODEL), str(tmp_path / "store")]
            found: dict[str, Any] = json.loads(run(command, cwd=tmp_path, env=environment).splitlines()[-1])
            assert Path(found["file"]).is_relative_to(tmp_path / "environment")
            assert found["version"] == penstock.__version__
            return found

        return model

    return install


def test_the_source_distribution_has_all_that_is_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in PARTS.values():
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".c", ".h", *PAGE) or file.name == "py.typed":
                assert file.relative_to(ROOT).as_posix() in names
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= names


def test_the_wheel_has_every_module_and_the_licence(wheel: Path) -> None:
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for package, folder in PARTS.items():
        for file in (each for each in (ROOT / folder).rglob("*") if each.suffix in (".py", *PAGE)):
            inside = Path(*package.split("."), file.relative_to(ROOT / folder))
            assert inside.as_posix() in names
    assert {"penstock/py.typed", "penstock/kernels/_native.abi3.so"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_a_wheel_runs_its_kernels_where_there_is_no_compiler(wheel: Path, install: Install) -> None:
    found = install(wheel)()
    assert found["level"] in LEVELS
    assert found["calls"]["products"] > 0
    assert len(found["tokens"]) > 12


def test_without_a_compiler_it_installs_and_says_that_nothing_was_compiled(
    sdist: Path, tmp_path: Path, install: Install
) -> None:
    found = install(build_wheel(sdist, tmp_path, CC=NO_COMPILER))()
    assert (found["compiler"], found["level"], found["calls"]) == ("", "none", {})
    assert found["missing"][0].startswith("nothing was compiled at installation")
    assert len(found["tokens"]) > 12


@pytest.mark.soak  # it compiles everything once more
def test_a_compiler_without_openmp_gives_kernels_on_one_thread(
    sdist: Path, wheel: Path, tmp_path: Path, install: Install
) -> None:
    """As Apple's clang: it refuses the option."""
    compiler = tmp_path / "cc"
    refusing = 'case " $* " in *" -fopenmp "*) echo "unsupported option -fopenmp" >&2; exit 1;; esac'
    compiler.write_text(f'#!/bin/sh\n{refusing}\nexec {shutil.which("cc")} "$@" -O1\n')
    compiler.chmod(0o755)
    found = install(build_wheel(sdist, tmp_path, CC=str(compiler)))()
    assert not found["openmp"]
    assert "the kernels run on one thread: they were compiled without OpenMP" in found["missing"]
    assert found["calls"]["products"] > 0
