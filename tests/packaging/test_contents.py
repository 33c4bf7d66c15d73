"""What pyproject.toml says is what there is."""

import re
import tomllib
from pathlib import Path

import pytest

import penstock

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PARTS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]


def folders() -> set[str]:
    """The packages that lie in the tree."""
    found = set()
    for package, folder in PARTS.items():
        for module in (ROOT / folder).rglob("*.py"):
            found.add(".".join((package, *module.parent.relative_to(ROOT / folder).parts)))
    return found


def test_packages_are_the_folders() -> None:
    packages = PROJECT["tool"]["setuptools"]["packages"]
    assert len(packages) == len(set(packages))
    assert set(packages) == folders()


def test_every_package_says_what_belongs_in_it() -> None:
    without = [
        package
        for package in folders()
        for part in [max((part for part in PARTS if package == part or package.startswith(part + ".")), key=len)]
        for place in [ROOT / PARTS[part] / Path(*package.removeprefix(part).strip(".").split("."))]
        if not (place / "__init__.py").is_file() or not (place / "__init__.py").read_text("utf-8").startswith('"""')
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
