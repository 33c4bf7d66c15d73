"""The resident set of a real process, sampled while it packs and decodes under a budget far below the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_models import save_tiny

CHILD = """
import json, sys, threading, time
import psutil, torch
from transformers import PreTrainedModel  # transformers loads itself lazily: the baseline is with it loaded
process = psutil.Process()
base, peak, done = process.memory_info().rss, 0, threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, process.memory_info().rss - base)
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
import penstock
model = penstock.load(sys.argv[1], store=sys.argv[2], host_memory=int(sys.argv[3]))
ids = torch.randint(0, model.config.vocab_size, (1, 40))
model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0)
stats = model.penstock.stats()
done.set()
watcher.join()
print(json.dumps({"peak": peak, "host": stats.host_bytes, "read": stats.flash_bytes_read}))
"""

SIZES = {
    "llama": {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 12, "vocab_size": 8000},
    "qwen3_moe": {"hidden_size": 512, "moe_intermediate_size": 512, "num_experts": 24, "num_hidden_layers": 5},
}
MiB = 1 << 20


@pytest.mark.parametrize("name", SIZES)
def test_resident_set_stays_within_budget(name: str, tmp_path: Path) -> None:
    folder = save_tiny(name, tmp_path / name, torch.bfloat16, **SIZES[name])
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    budget = 32 * MiB
    assert size > 160 * MiB, "the model must be far larger than what is allowed, or the test shows nothing"
    command = [sys.executable, "-c", CHILD, str(folder), str(tmp_path / "store"), str(budget)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["host"] <= budget
    assert found["read"] > 4 * budget, "the weights were not streamed"
    assert found["peak"] < budget + 128 * MiB
