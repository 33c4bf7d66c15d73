"""Three tiers: how near decoding comes to the limit of bus, drive and computing, whichever binds.

    python bench/device.py MODEL --device cuda:0 --device-memory 4GiB --host-memory 2GiB [--trace run.json]
    python bench/device.py MODEL --device emulated:4GB ...     # anywhere: a part of host memory, and a modelled bus

Each round measures, in turn: the bus alone (whole blocks from page-locked memory), the drive alone (the blocks that are
streamed from it, in their order), computing alone (everything on the device), and penstock with the budgets given. A
token cannot take less than the longest of computing, its bytes over the bus and its bytes over the drive; "fraction of
the limit" is that over what it took. With a CUDA device, accelerate's CPU offload takes part too.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from decode import warm
from drive import drive_speed
from engines import Transformers, open_engine
from figures import Spread, difference
from report import Table, publish
from rounds import Runner, size
from tokens import fixed_tokens

from penstock.kernels.devices.measure import measure_bus
from penstock.runtime.config.config import Config
from penstock.runtime.loading.openings.device import open_device
from penstock.tiering.units import format_size

PROMPT = 64


def decode(engine: Transformers, tokens: int, trace: Path | None = None) -> dict[str, Any]:
    """Measure the seconds of a token after a prompt, and what it asks of the bus and the drive."""
    ids = fixed_tokens(PROMPT + tokens, engine.vocabulary)
    engine.restart()
    engine.feed(ids[:PROMPT])
    before = engine.handle.stats().report() if engine.handle else {}
    recorded = engine.handle.trace(trace) if trace and engine.handle else None
    start = time.perf_counter()
    for token in ids[PROMPT:]:
        engine.feed([token])
    seconds = time.perf_counter() - start
    if recorded:
        recorded.stop()
    counted = difference(before, engine.handle.stats().report()) if engine.handle else {}
    found: dict[str, Any] = {"seconds": seconds / tokens}
    for name in ("bytes_copied", "flash_bytes_read", "copy_s", "stall_s"):
        found[name] = counted.get(name, 0) / tokens
    return found


def limits(round: dict[str, Any]) -> dict[str, float]:
    """Compute the least seconds of a token for each thing that may limit it."""
    ours = round["penstock"]
    return {
        "computing": round["compute"]["seconds"],
        "bus": ours["bytes_copied"] / round["bus"],
        "drive": ours["flash_bytes_read"] / round["drive"] if round["drive"] else 0.0,
    }


def measure(options: argparse.Namespace, store: str, scratch: str) -> list[dict[str, Any]]:
    """Measure all rounds."""
    device = open_device(Config(compute={"device": options.device}))
    assert device is not None, "the CPU is no device"
    whole = Runner(options.model, store=store, gguf=None, depth=None).everything()
    common: dict[str, Any] = {"longest": 0, "threads": 0, "scratch": scratch}
    place = {"store": store, "device": options.device}
    budgets = {"device_memory": options.device_memory, "host_memory": options.host_memory}
    rounds = []
    for number in range(options.rounds):
        round: dict[str, Any] = {"bus": measure_bus(device)[0]}
        with open_engine(
            "penstock", options.model, settings=place | budgets | {"device_memory": whole}, **common
        ) as engine:
            warm(engine)
            round["compute"] = decode(engine, options.tokens)
        with open_engine("penstock", options.model, settings=place | budgets, **common) as engine:
            streamed = [block.module for block in engine.handle.placement.streamed]
            experts = engine.handle.placement.expert_count
            decode(engine, options.tokens // 4 + 1)  # what caches there are fill
            round["penstock"] = decode(engine, options.tokens, options.trace if not number else None)
            bundle = engine.handle.bundle
        round["drive"] = drive_speed(bundle, streamed, depth=4) if streamed or experts else None
        if device.compute.type == "cuda":
            with open_engine("accelerate-cpu", options.model, **common) as engine:
                round["accelerate"] = decode(engine, options.tokens)
        rounds.append(round)
    return rounds


def table(rounds: Sequence[dict[str, Any]], options: argparse.Namespace) -> Table:
    """Make the table of the report."""
    bound = [limits(round) for round in rounds]
    binding = max(bound[0], key=bound[0].__getitem__)
    ours = [round["penstock"] for round in rounds]

    def spread(values: Sequence[float], digits: int, unit: str = "") -> str:
        return Spread.of(values).text(digits, unit)

    rows = [
        ("tokens/s", spread([1 / each["seconds"] for each in ours], 2)),
        ("MB copied up for a token", spread([each["bytes_copied"] / 1e6 for each in ours], 0)),
        ("MB read from flash for a token", spread([each["flash_bytes_read"] / 1e6 for each in ours], 0)),
        ("the bus alone, GB/s", spread([round["bus"] / 1e9 for round in rounds], 2)),
        (
            "copies while one is under way, share of that",
            spread([e["bytes_copied"] / e["copy_s"] / r["bus"] for e, r in zip(ours, rounds, strict=True)], 3)
            if all(each["copy_s"] for each in ours)
            else "none are made",
        ),
        *((f"limit of {name}, ms", spread([each[name] * 1e3 for each in bound], 0)) for name in bound[0]),
        (
            f"fraction of the limit ({binding})",
            spread([max(each.values()) / e["seconds"] for each, e in zip(bound, ours, strict=True)], 3),
        ),
    ]
    if all("accelerate" in round for round in rounds):
        ratios = [round["accelerate"]["seconds"] / round["penstock"]["seconds"] for round in rounds]
        rows.append(("accelerate, CPU offload, is slower by", spread(ratios, 2, "x")))
    budgets = (
        f"{format_size(options.device_memory)} of {options.device}, {format_size(options.host_memory)} of the host"
    )
    return Table(f"{options.model.name}, {budgets}, {options.rounds} rounds of {options.tokens} tokens", ("", ""), rows)


def main() -> None:
    """Measure bus, drive, computing and penstock in turn, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="emulated:4GB")
    parser.add_argument("--device-memory", type=size, required=True)
    parser.add_argument("--host-memory", type=size, required=True)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", help="folder for the bundle (default: a temporary one)")
    parser.add_argument("--trace", type=Path, help="a trace of the first round, for bench/picture.py")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as scratch, torch.no_grad():
        rounds = measure(options, options.store or scratch, scratch)
    publish([table(rounds, options)], {"rounds": rounds}, json_file=options.json, markdown=options.markdown)


if __name__ == "__main__":
    main()
