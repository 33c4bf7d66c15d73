"""Runs one engine once: fixed random tokens, a prompt at once, then one by one. Prints one JSON object.

    python bench/decode.py penstock|accelerate|llama.cpp|ram MODEL TOKENS [--host-memory SIZE] [--store FOLDER]
                           [--set NAME=VALUE] [--gguf FILE] [--prompt 64] [--warm]

Only the tokens one by one are the speed; the prompt of 64 before them has filled what caches there are. ``--warm``
first feeds other tokens, untimed, until nothing is read from the drive any more: for a budget that holds everything.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from engines import MODES, Transformers, digest, open_engine
from figures import difference, speed, traffic
from resident import ResidentSet
from tokens import fixed_tokens
from unions import watch_experts

from penstock.kernels.machine.machine import count_usable_cores

_WARMING = 512
_MOST_WARMING = 16


def warm(engine: Transformers) -> None:
    """Feed prompts of other tokens until one of them reads nothing."""
    for row in range(1, _MOST_WARMING):
        before = engine.handle.stats().flash_bytes_read
        engine.restart()
        engine.feed(fixed_tokens(_WARMING, engine.vocabulary, row=row))
        if engine.handle.stats().flash_bytes_read == before:
            break
    engine.restart()


def placement(handle: Any) -> dict[str, Any]:
    """Describe where penstock keeps the weights, and how it reads them."""
    place = handle.placement
    names = ("streamed_bytes", "pinned_bytes", "resident_bytes", "expert_count", "expert_total_bytes")
    return {
        "bundle": str(handle.bundle),
        "streamed": [block.module for block in place.streamed],
        "host_budget": place.budget,
        "expert_region_bytes": place.expert_region_bytes,
    } | {name: getattr(place, name) for name in names}


def run_prompt(engine: Any, ids: list[int]) -> dict[str, Any]:
    """Time a prompt. For penstock, also count what it read and how many different experts it needed."""
    if not engine.handle:
        start = time.perf_counter()
        engine.feed(ids)
        return {"prompt_s": time.perf_counter() - start}
    before = engine.handle.stats().report()
    with watch_experts(engine.model) as unions:
        unions.step(resident=())
        start = time.perf_counter()
        engine.feed(ids)
        seconds = time.perf_counter() - start
    counted = difference(before, engine.handle.stats().report())
    return {
        "prompt_s": seconds,
        "prompt_bytes_read": counted["flash_bytes_read"],
        "prompt_row_bytes": counted["row_bytes"],
        "prompt_experts": unions.count,
    }


def run_tokens(engine: Any, ids: list[int]) -> dict[str, Any]:
    """Time ``ids`` one by one. For penstock, also count what they asked of the drive."""
    before = engine.handle and engine.handle.stats().report()
    seconds, logits = [], []
    for token in ids:
        start = time.perf_counter()
        engine.feed([token])
        seconds.append(time.perf_counter() - start)
        logits.append(engine.logits)
    found = speed(seconds) | {"tokens": len(ids), "seconds": seconds}
    if engine.handle:
        found |= traffic(difference(before, engine.handle.stats().report()), sum(seconds), len(ids))
    return found | {"digests": [digest(each) for each in logits]}


def main() -> None:
    """Run one engine once, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=int)
    parser.add_argument("--host-memory", default="auto")
    parser.add_argument("--store", default=None)
    parser.add_argument("--io-depth", type=int, default=None, help="reads in flight (default: chosen by penstock)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="further settings of penstock")
    parser.add_argument("--gguf", type=Path, default=None, help="the model for llama.cpp")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--warm", action="store_true")
    options = parser.parse_args()
    settings = {"host_memory": options.host_memory, "store": options.store, "io_depth": options.io_depth}
    settings |= dict(setting.split("=", 1) for setting in options.set)
    watch = ResidentSet()
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        start = time.perf_counter()
        with open_engine(
            options.mode,
            options.model,
            longest=options.prompt + options.tokens,
            threads=count_usable_cores(),
            scratch=scratch,
            gguf=options.gguf,
            settings={name: value for name, value in settings.items() if value is not None},
        ) as engine:
            found: dict[str, Any] = {"mode": options.mode, "load_s": time.perf_counter() - start}
            found["load_resident_bytes"] = watch.peak
            if options.mode == "penstock":
                found |= placement(engine.handle)
                if options.warm:
                    warm(engine)
            ids = fixed_tokens(options.prompt + options.tokens, engine.vocabulary)
            found |= run_prompt(engine, ids[: options.prompt])
            if options.tokens:
                found |= run_tokens(engine, ids[options.prompt :])
            found["peak_resident_bytes"] = watch.peak
    print(json.dumps(found))


if __name__ == "__main__":
    main()
