"""The resident set of a real process, sampled while it packs and decodes under a budget far below the model, or below
its context."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.tiny_models import LARGER, save_tiny

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
model = penstock.load(sys.argv[1], store=sys.argv[2], host_memory=int(sys.argv[3]), **json.loads(sys.argv[4]))
DECODE
stats = model.penstock.stats()
done.set()
watcher.join()
print(json.dumps({"peak": peak, "host": stats.host_bytes, "read": stats.flash_bytes_read, "kv": stats.kv_bytes_read}))
"""
DECODE = """
ids = torch.randint(0, model.config.vocab_size, (1, 40))
model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0)
"""
LONG = """
config, cache = model.config, model.penstock.cache()
piece = torch.randn(1, config.num_key_value_heads, 512, config.head_dim, dtype=model.dtype)
for _ in range(8):
    for layer in cache.layers:
        layer.extend(piece, piece)
for rows in (40, 1, 1, 1):
    model(torch.randint(0, config.vocab_size, (1, rows)), past_key_values=cache)
"""

KV = {"num_hidden_layers": 8, "num_key_value_heads": 16, "num_attention_heads": 16, "head_dim": 128}
MiB = 1 << 20


def run(body: str, folder: Path, store: Path, budget: int, **options: int) -> dict[str, int]:
    """What a process says that loads the model in ``folder`` and runs ``body``."""
    child = CHILD.replace("DECODE", body)
    command = [sys.executable, "-c", child, str(folder), str(store), str(budget), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", LARGER)
def test_resident_set_stays_within_budget(name: str, tmp_path: Path) -> None:
    folder = save_tiny(name, tmp_path / name, torch.bfloat16, **LARGER[name])
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    budget = 32 * MiB
    assert size > 160 * MiB, "the model must be far larger than what is allowed, or the test shows nothing"
    found = run(DECODE, folder, tmp_path / "store", budget)
    assert found["host"] <= budget
    assert found["read"] > 4 * budget, "the weights were not streamed"
    assert found["peak"] < budget + 128 * MiB


def test_so_it_does_with_a_long_context(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "llama", torch.bfloat16, max_position_embeddings=8192, **KV)
    budget, kv = 48 * MiB, 32 * MiB
    found = run(LONG, folder, tmp_path / "store", budget, kv_host_memory=kv)
    assert found["host"] <= budget
    assert found["peak"] < budget + 128 * MiB
    assert found["kv"] > 4 * 200 * MiB, "the context of 256 MiB was not read from flash by each forward"
