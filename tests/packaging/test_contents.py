"""What pyproject.toml says is what there is."""

import re
import tomllib
from pathlib import Path

import pytest

import penstock

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PARTS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]


def test_every_package_says_what_belongs_in_it() -> None:
    without = [
        module.relative_to(ROOT).as_posix()
        for folder in PARTS.values()
        for module in (ROOT / folder).rglob("__init__.py")
        if not module.read_text("utf-8").startswith('"""')
    ]
    assert without == []


def test_the_version_is_written_once() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert "version" not in PROJECT["project"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", penstock.__version__)
    assert f"## [{penstock.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_the_public_face_is_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 500


def test_the_licence_is_that_of_the_project() -> None:
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text("utf-8")


def test_every_extra_is_under_the_constraints() -> None:
    """What a test, a check or a build installs does not change by itself."""
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    extras = PROJECT["project"]["optional-dependencies"]
    for extra in set(extras) - {"gds"}:  # of a GPU's makers, and not installed here
        names = {re.split(r"[<>=; \[]", line)[0].lower().replace("_", "-") for line in extras[extra]}
        assert names <= pinned, extra
