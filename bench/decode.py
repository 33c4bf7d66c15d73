"""One run: fixed random tokens, a prompt of 64 at once, then one by one; prints one JSON object.

    python bench/decode.py penstock|accelerate|ram MODEL TOKENS [--host-memory SIZE] [--store FOLDER]

``accelerate`` offloads every decoder layer to disk; ``ram`` is transformers with everything in memory.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

PROMPT = 64


class ResidentSet:
    """The peak of the resident set over what it is now, in bytes, sampled every 5 ms."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._base = self._process.memory_info().rss
        self.peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self._process.memory_info().rss - self._base)
            time.sleep(0.005)


def open_model(options: argparse.Namespace, scratch: str) -> Any:
    if options.mode == "penstock":
        import penstock

        return penstock.load(options.model, host_memory=options.host_memory, store=options.store)
    place: dict[str, str] = {}
    if options.mode == "accelerate":
        layers = AutoConfig.from_pretrained(options.model).num_hidden_layers
        place = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
        place |= {f"model.layers.{layer}": "disk" for layer in range(layers)}
    more: dict[str, Any] = {"device_map": place, "offload_folder": scratch} if place else {}
    return AutoModelForCausalLM.from_pretrained(options.model, **more).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("penstock", "accelerate", "ram"))
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=int)
    parser.add_argument("--host-memory", default="auto")
    parser.add_argument("--store", default=None)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    watch = ResidentSet()
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        start = time.perf_counter()
        model = open_model(options, scratch)
        found: dict[str, Any] = {"mode": options.mode, "load_s": time.perf_counter() - start}
        found["load_resident_bytes"] = watch.peak
        ids = torch.randint(10, 30000, (1, PROMPT + options.tokens), generator=torch.Generator().manual_seed(0))
        ids %= model.config.vocab_size
        start = time.perf_counter()
        out = model(ids[:, :PROMPT], use_cache=True)
        found["prefill_s"] = time.perf_counter() - start
        before = model.penstock.stats() if options.mode == "penstock" else None
        seconds = []
        for position in range(PROMPT, PROMPT + options.tokens):
            start = time.perf_counter()
            out = model(ids[:, position : position + 1], past_key_values=out.past_key_values, use_cache=True)
            seconds.append(time.perf_counter() - start)
        found |= {"tokens_per_second": 1 / statistics.median(seconds), "peak_resident_bytes": watch.peak}
        if before is not None:
            after = model.penstock.stats()
            hits = after.expert_hits - before.expert_hits
            asked = hits + after.expert_misses - before.expert_misses
            read = after.flash_bytes_read - before.flash_bytes_read
            busy = after.flash_read_seconds - before.flash_read_seconds
            found |= {
                "hit_ratio": hits / asked if asked else None,
                "flash_bytes_per_token": read / options.tokens,
                "stall_share": (after.stall_seconds - before.stall_seconds) / sum(seconds),
                "drive_busy_share": busy / sum(seconds),
                "drive_bytes_per_second": read / busy if busy else None,
                "host_budget": after.host_budget,
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
