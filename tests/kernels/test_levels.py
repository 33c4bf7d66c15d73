"""Lower levels of instructions than this processor's, and installations without a compiler: all works there too."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.kernels.isa import NONE, SETTING
from penstock.kernels.native import RUNS
from tests.support.tiny_models import save_tiny

EXACT, LOSSY = ("as-is", "lossless"), ("int8", "int4", "nested", "stacked")
LOWER = (NONE, *RUNS[:-1])
TORCH = {"plain": "DEFAULT", "avx2": "AVX2"}
"""What torch calls the levels."""
ROOMS = ("formats", "products", "weights", "kv", "experts")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen3_moe", tmp_path_factory.mktemp("levels") / "qwen3_moe", torch.bfloat16)


def held(level: str) -> dict[str, str]:
    """The environment of a process whose kernels, ours and torch's, are held to ``level``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ATEN_CPU", "ONEDNN_MAX"))}
    return kept | {SETTING: level, "OMP_NUM_THREADS": "1"}


def run(level: str, *arguments: object) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-W", "ignore", "-m", "tests.support.levels_child", *map(str, (out, *arguments))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=held(level))
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def run_tests(level: str, marked: str, *more: str) -> None:
    """Run tests of what computes with kernels, those ``marked``, at ``level``."""
    rooms = [f"tests/kernels/{room}" for room in ROOMS]
    rooms += ["tests/runtime/experts", "tests/runtime/packing/measure", "tests/runtime/tiers/test_expert_planes.py"]
    rooms += [
        "tests/runtime/modules",
        "tests/runtime/kv/attention",
        "tests/runtime/checkpoints/quantisation/test_quantised_tensor.py",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marked, *more, *rooms]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=held(level))
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("level", LOWER)
def test_models_run_with_fewer_instructions(checkpoint: Path, tmp_path: Path, level: str) -> None:
    """As they are, and losslessly, with the bits of transformers at that level; in other formats, near those."""
    done = run(level, checkpoint, tmp_path / "store", *EXACT, *LOSSY)
    assert done["level"] == level
    assert done["torch"] == TORCH.get(level, done["torch"])
    for name in EXACT:
        assert done["found"][name] == done["expected"], name
    for name in LOSSY:
        for found, wanted in zip(done["found"][name], done["expected"], strict=True):
            a, b = torch.tensor(found), torch.tensor(wanted)
            assert torch.cosine_similarity(a.flatten(), b.flatten(), 0) > 0.98, name


@pytest.mark.skipif("avx2" not in LOWER, reason="AVX2 is not below this processor's best")
def test_the_marked_tests_hold_with_avx2() -> None:
    """Those of formats and products, without the longest."""
    run_tests("avx2", "levels and not soak", "-k", "not one_number")


@pytest.mark.soak
@pytest.mark.parametrize("level", LOWER)
def test_all_tests_of_kernels_hold_with_fewer_instructions(level: str) -> None:
    run_tests(level, "not soak")
