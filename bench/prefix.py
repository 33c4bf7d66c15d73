"""Time to the first token of a long prompt: computed, and with its prefix restored from flash by another process.

    python bench/prefix.py CHECKPOINT STORE --tokens 4097 --rounds 3

Both compute in blocks of the same size, so their logits must be equal to the bit.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from penstock.runtime.prefill import prefill
from penstock.runtime.prefix import Prefixes
from penstock.runtime.prefix_identity import identity_of
from penstock.tiering.prefix.chain import BLOCK
from penstock.tiering.store.prefixes import PrefixStore
from penstock.tiering.units import GiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("store", type=Path)
    parser.add_argument("--tokens", type=int, default=4097)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=("cold", "warm", "miss"), help="what one process of it measures")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.checkpoint, asked.store, asked.tokens, asked.one)))
        return
    found: dict[str, list[dict[str, object]]] = {"cold": [], "warm": [], "miss": []}
    for _ in range(asked.rounds):
        for kind, reports in found.items():
            again = [sys.executable, __file__, asked.checkpoint, str(asked.store), "--one", kind]
            out = subprocess.run([*again, "--tokens", str(asked.tokens)], check=True, stdout=subprocess.PIPE, text=True)
            reports.append(json.loads(out.stdout))
    seconds = {kind: statistics.median(report["seconds"] for report in reports) for kind, reports in found.items()}
    print(json.dumps(found, indent=1))
    cold, warm = seconds["cold"], seconds["warm"]
    beside = statistics.median(report["beside"] for report in found["miss"])
    print(f"computed {cold:.3f} s, restored {warm:.3f} s: {cold / warm:.0f} times faster")
    print(f"a miss takes {beside * 1e3:.1f} ms besides, {beside / cold:.3%}: to look, and to offer what was computed")
    print("same logits:", len({report["logits"] for kind in ("cold", "warm") for report in found[kind]}) == 1)


def measure(checkpoint: str, folder: Path, tokens: int, kind: str) -> dict[str, object]:
    """Seconds to the logits of the last token, and ``beside`` the model's own work. ``cold`` is stored afterwards,
    ``miss`` is another prompt each time."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="sdpa").eval()
    seed = time.time_ns() if kind == "miss" else 0
    ids = torch.randint(3, model.config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    prefill(model, ids[:BLOCK], DynamicCache(config=model.config))  # what the first call of a process takes besides
    identity = identity_of(model.config, weights=checkpoint, dtype=str(model.dtype))
    with Prefixes(PrefixStore(folder, 10 * GiB), identity, model.config, label=Path(checkpoint).name) as prefixes:
        cache = DynamicCache(config=model.config)
        began = time.perf_counter()
        restored = prefixes.restore(ids, cache) if kind != "cold" else 0
        beside = time.perf_counter() - began
        logits = prefill(model, ids, cache)
        seconds = time.perf_counter() - began
        if kind == "miss":
            prefixes.offer(ids, cache)
            beside += time.perf_counter() - began - seconds
        if kind == "cold":
            prefixes.prefilled(tokens, seconds)
            prefixes.save(ids, cache)
        stats = prefixes.stats()
    digest = hashlib.sha256(logits.float().numpy().tobytes()).hexdigest()[:16]
    return {"seconds": seconds, "restored": restored, "beside": beside, "bytes": stats.bytes_read, "logits": digest}


if __name__ == "__main__":
    main()
