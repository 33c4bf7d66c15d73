"""What is done with models on a device: inputs go there, results come back."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def uses(folder: Path, *wanted: str) -> dict[str, dict[str, Any]]:
    """On a device whose tensors mix with no others, in a process of its own."""
    child = [sys.executable, Path(__file__).parents[3] / "support" / "pretend_uses_child.py", folder, *wanted]
    out = subprocess.run(list(map(str, child)), stdout=subprocess.PIPE, text=True, check=True, timeout=300).stdout
    return {found.pop("name"): found for found in map(json.loads, out.splitlines())}


def test_on_another_device_than_the_cpu(tmp_path: Path) -> None:
    moe = "qwen3_moe:eval:calibrate:profile:bench"
    found = uses(tmp_path, moe, "llama:prefix", "gemma3_text:prefix_paged")
    assert found["qwen3_moe:eval"] == {"same": True, "tokens": 57}
    assert found["qwen3_moe:calibrate"] == {"same": True, "matrices": 26, "shares": 34}
    assert found["qwen3_moe:profile"] == {"tokens": [20, 17]}
    assert found["qwen3_moe:bench"] == {"tokens": 3}
    restored = {"same": True, "restored": 128, "problem": ""}
    assert found["llama:prefix"] == found["gemma3_text:prefix_paged"] == restored
