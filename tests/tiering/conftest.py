"""Where the tests of the store write a bundle."""

from pathlib import Path

import pytest


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


@pytest.fixture
def partial(target: Path) -> Path:
    return target.with_name("bundle.partial")
