"""Time to the first token of a long prompt after a restart: computed, found on flash, not found, and without a store.

    python bench/prefix.py CHECKPOINT STORE --tokens 4097 --host-memory 3GiB --rounds 3

Each is a process of its own, all in turn; the first two fill the store.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

import penstock

KINDS = ("off", "miss", "hit")
"""Without a store, with another prompt each time, with the same."""


def main() -> None:
    """Run all kinds in turn, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("store")
    parser.add_argument("--tokens", type=int, default=4097)
    parser.add_argument("--host-memory", default="auto")
    parser.add_argument("--kv-host-memory", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=KINDS, help="what one process of it measures")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked)))
        return
    for _ in range(2):
        measure_again("hit")
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(asked.rounds):
        for kind, reports in found.items():
            reports.append(measure_again(kind))
    print(json.dumps(found, indent=1))
    seconds = {kind: statistics.median(report["seconds"] for report in reports) for kind, reports in found.items()}
    print(
        f"without a store {seconds['off']:.3f} s, found {seconds['hit']:.3f} s: {seconds['off'] / seconds['hit']:.0f} x"
    )
    print(f"not found {seconds['miss']:.3f} s: {seconds['miss'] / seconds['off'] - 1:+.1%}")
    print("same token:", len({report["token"] for kind in ("off", "hit") for report in found[kind]}) == 1)


def measure_again(kind: str) -> dict[str, float]:
    """Measure in a new process."""
    out = subprocess.run([sys.executable, *sys.argv, "--one", kind], check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, float] = json.loads(out.stdout)
    return report


def measure(asked: argparse.Namespace) -> dict[str, float]:
    """Measure the seconds to the first token, after a short prompt has brought the process to speed."""
    sizes = {"host_memory": asked.host_memory, "kv_host_memory": asked.kv_host_memory}
    prefix = "off" if asked.one == "off" else "10GiB"
    with penstock.load(asked.checkpoint, store=asked.store, kv_prefix=prefix, **sizes) as model:
        seed = time.time_ns() if asked.one == "miss" else 0
        shape = (1, asked.tokens)
        ids = torch.randint(3, model.config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))
        model.generate(ids[:, :64].flip(1), max_new_tokens=2, do_sample=False)
        began = time.perf_counter()
        token = model.generate(ids, max_new_tokens=1, do_sample=False)[0, -1].item()
        seconds = time.perf_counter() - began
    stats = model.penstock.stats()
    return {
        "seconds": seconds,
        "token": token,
        "restored": stats.prefix_tokens_restored,
        "read": stats.prefix_bytes_read,
    }


if __name__ == "__main__":
    main()
