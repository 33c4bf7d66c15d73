"""How near `penstock plan` comes to real runs, without a trace of the routing or with one: tokens/s, bytes, hit ratio.

    python bench/planned.py MODEL --host-memory 1GiB 2GiB 3GiB [--text FILE] [--profile TRACE] [--rounds 3]

Each round asks for a plan of every budget, each followed by a run. The plan knows nothing of the runs; what it measures
of the machine, it measures anew at the beginning of each round. What is timed are tokens one by one, after a prompt.
The packed model lies below the present folder meanwhile: that drive is measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import transformers
from report import Table, publish
from simulated import PROMPT, row, run

from penstock.tiering.units import format_size, parse_size

FIGURES = ("tokens_per_second", "flash_bytes_per_token", "hit_ratio")
RANGE = ("tokens_per_second_from", "tokens_per_second_to")


def plan_budget(options: argparse.Namespace, store: str, budget: int, cache: Path) -> dict[str, float]:
    """Ask ``penstock plan`` for the figures of ``budget`` bytes. It keeps its measurements in ``cache``."""
    command = "from penstock.runtime.cli.main import run; run()"
    arguments = ["plan", options.model, "--host-memory", str(budget), "--prompt-tokens", str(PROMPT), "--store", store]
    trace = [] if options.profile is None else ["--profile", options.profile]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments, *trace, "--json"],
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
    )
    report = json.loads(done.stdout)
    return {f"planned_{name}": report[name] for name in (*FIGURES, *RANGE)}


def within(rounds: Sequence[dict[str, float]]) -> tuple[str, str]:
    """The median range that was planned, and how many of ``rounds`` lay in theirs."""
    least, most = (statistics.median(each[f"planned_{name}"] for each in rounds) for name in RANGE)
    low, high = (f"planned_{name}" for name in RANGE)
    held = sum(each[low] <= each["tokens_per_second"] <= each[high] for each in rounds)
    return f"{least:.1f} to {most:.1f}", f"{held} of {len(rounds)}"


def main() -> None:
    """Plan and run each budget, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--host-memory", nargs="+", required=True, help="budgets")
    parser.add_argument("--text", type=Path, help="what is read, instead of fixed random tokens")
    parser.add_argument("--profile", help="routing trace for the plan")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    budgets = [parse_size(budget) for budget in options.host_memory]
    found: dict[int, list[dict[str, float]]] = {budget: [] for budget in budgets}
    with tempfile.TemporaryDirectory(dir=".") as store:
        run(options, store, budgets[-1])  # packs the model, and compiles what computing needs
        for number in range(options.rounds):
            cache = Path(store).resolve() / f"cache-{number}"
            for budget in budgets:
                found[budget].append(plan_budget(options, store, budget, cache) | run(options, store, budget)[0])
    columns = (
        "budget",
        "tokens/s",
        "planned",
        "",
        "MB/token",
        "planned",
        "",
        "hit ratio",
        "planned",
        "",
        "range",
        "held",
    )
    rows = [(*row(format_size(budget), rounds, "planned"), *within(rounds)) for budget, rounds in found.items()]
    publish(
        [Table(f"{Path(options.model).name}: real and planned, medians", columns, rows)],
        {"rounds": {str(budget): rounds for budget, rounds in found.items()}},
        json_file=options.json,
        markdown=options.markdown,
    )


if __name__ == "__main__":
    main()
