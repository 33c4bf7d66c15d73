"""Windows, as far as it can be played here: see tests/support/pretend_windows.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXACT = "tests/runtime/loading/test_exact.py::test_logits_equal_those_of_transformers"
SOME = ("tests/support/pretended_imports.py", f"{EXACT}[llama-bfloat16]", f"{EXACT}[qwen3_moe-float32]")
PACKING = ("tests/runtime/packing/test_pack.py", "tests/runtime/packing/test_bytes.py")


def run(*tests: str) -> None:
    command = [sys.executable, "-m", "tests.support.pretend_windows", "-q", "-p", "no:cacheprovider", "-m", "not soak"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *tests], cwd=ROOT, capture_output=True, text=True, timeout=900, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_all_modules_import_the_demo_runs_and_bits_are_right() -> None:
    run(*SOME)


@pytest.mark.soak
def test_packing_exactness_and_pages() -> None:
    run("tests/runtime/loading/test_exact.py", *PACKING, "tests/runtime/kv/cache")
