"""Processors without AVX-512, without AVX2, and installations without a compiler: everything works there too."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from penstock.kernels.isa import NONE, SETTING
from penstock.kernels.native import COMPILED, RUNS
from tests.support.logits import logits
from tests.support.tiny_models import save_tiny

EXACT, LOSSY = ("as-is", "lossless"), ("int8", "int4", "nested")
LOWER = (NONE, *RUNS[:-1])


@pytest.fixture(scope="module", params=["qwen3_moe"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(request.param, tmp_path_factory.mktemp("levels") / request.param, torch.bfloat16)


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[Any]:
    """What transformers computes."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    found = [out[:, -1].float().tolist() for out in logits(model, steps=2)]
    return [*found, model(torch.tensor([[5]])).logits[:, -1].float().tolist()]


def run(level: str, *arguments: object) -> dict[str, Any]:
    environment = os.environ | {SETTING: level, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-W", "ignore", "-m", "tests.support.levels_child", *map(str, (out, *arguments))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("level", LOWER)
def test_models_run_with_fewer_instructions(
    checkpoint: Path, expected: list[Any], tmp_path_factory: pytest.TempPathFactory, level: str
) -> None:
    """As they are, and losslessly, with transformers' bits; in other formats, near those."""
    store = tmp_path_factory.getbasetemp() / f"levels-{checkpoint.name}"
    done = run(level, checkpoint, store, *EXACT, *LOSSY)
    assert done["level"] == level
    for name in EXACT:
        assert done["found"][name] == expected, name
    for name in LOSSY:
        for found, wanted in zip(done["found"][name], expected, strict=True):
            a, b = torch.tensor(found), torch.tensor(wanted)
            assert torch.cosine_similarity(a.flatten(), b.flatten(), 0) > 0.98, name


@pytest.mark.soak
@pytest.mark.parametrize("level", LOWER)
def test_all_tests_of_kernels_hold_with_fewer_instructions(level: str) -> None:
    if COMPILED is None:
        pytest.skip("nothing was compiled")
    rooms = [f"tests/kernels/{room}" for room in ("formats", "products", "weights", "kv", "experts")]
    rooms += ["tests/runtime/experts", "tests/runtime/packing/measure", "tests/runtime/tiers/test_expert_planes.py"]
    rooms += [
        "tests/runtime/modules",
        "tests/runtime/kv/attention",
        "tests/runtime/checkpoints/quantisation/test_quantised_tensor.py",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not soak", *rooms]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1800, env=os.environ | {SETTING: level, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-3000:]
