"""A test for tests/support/pretend_windows.py: every module can be imported, and the demo runs."""

import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("kernels", "tiering", "runtime")
OF_OTHERS = ("penstock.kernels.io.posix",)


def modules() -> list[str]:
    files = [file.relative_to(ROOT).with_suffix("") for part in PARTS for file in (ROOT / part).rglob("*.py")]
    return sorted({".".join(("penstock", *file.parts)).removesuffix(".__init__") for file in files} - {*OF_OTHERS})


@pytest.mark.parametrize("name", modules())
def test_it_can_be_imported(name: str) -> None:
    importlib.import_module(name)


def test_the_demo_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    runpy.run_path(str(ROOT / "examples" / "demo.py"), run_name="__main__")
    said = re.findall(r"│ +(yes|NO|reference) │", capsys.readouterr().out)
    assert said == ["yes"] * 4 + ["reference"], "tokens are those of transformers"
