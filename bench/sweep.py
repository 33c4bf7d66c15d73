"""Tokens per second against the memory budget, from a quarter of the model to all of it and a little more.

    python bench/sweep.py MODEL [--gguf MODEL.gguf] [--rounds 3] [--peer-shares 25 50 75 100] --plot FILE.svg

A budget of B is host_memory=B for penstock, and for everyone a real cap of B + --beside: python, torch and what
computing takes beside weights. Every round goes through all budgets once, in turn upwards and downwards. Peers are
slow: they get budgets of their own (--peer-shares, none leaves them out) and --peer-rounds. Says where more memory was
slower beyond noise, and how the speed steps from budget to budget. "limit" is the slower of two: reading what penstock
read at the drive's own speed, and computing alone, for which the fastest budget stands. Needs root and
``pip install 'penstock[bench]'``.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

from figures import Spread, find_falls, limit_seconds
from report import Table, publish, write_results
from rounds import RunFailed, Runner, make_parser, open_runner, print_run, size

from penstock.tiering.units import format_size

SHARES = (25, 35, 50, 65, 80, 90, 95, 98, 100, 102, 105, 110)
TOKENS = {"penstock": 48, "accelerate": 4, "llama.cpp": 4}
TOLERANCE = 0.05


def measure(run: Runner, mode: str, share: float, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one point of one round. A peer that does not fit under its cap is a point without a speed."""
    budget = int(run.model_bytes * share / 100)
    try:
        found = run.run(mode, TOKENS[mode], cap=budget + options.beside, host_memory=budget)
        print_run(found)
    except RunFailed as error:
        if mode == "penstock":
            raise
        found = {"mode": mode, "failed": str(error)}
    found.pop("digests", None)
    return found | {"share": share, "budget": budget}


def spreads(runs: list[dict[str, Any]], mode: str) -> dict[float, Spread]:
    """Collect the speed of ``mode`` at each share of the model, ascending."""
    mine = sorted((run for run in runs if run["mode"] == mode and "failed" not in run), key=lambda run: run["share"])
    return {
        share: Spread.of([run["tokens_per_second"] for run in group])
        for share, group in itertools.groupby(mine, key=lambda run: run["share"])
    }


def limits(runs: list[dict[str, Any]]) -> dict[float, float]:
    """Compute the limit in tokens per second at each share. The largest budget stands for computing alone."""
    speeds = spreads(runs, "penstock")
    compute = 1 / max(spread.median for spread in speeds.values())
    found = {}
    for share in speeds:
        seconds = [
            limit_seconds(
                compute=compute, bytes_per_token=run["flash_bytes_per_token"], drive_bytes_per_second=run["drive"]
            )
            for run in runs
            if run["mode"] == "penstock" and run["share"] == share and run["drive"]
        ]
        found[share] = 1 / Spread.of(seconds or [compute]).median
    return found


def verdicts(speeds: dict[float, Spread]) -> list[str]:
    """Say whether the speed rises with the budget, and how steeply."""
    shares, values = list(speeds), list(speeds.values())
    found = [
        f"FALLS: {values[early].median:.2f} at {shares[early]:g} %, {values[late].median:.2f} at {shares[late]:g} %"
        for early, late in find_falls(values, TOLERANCE)
    ] or [f"rises with the budget, within noise (no median more than {TOLERANCE:.0%} below an earlier one's range)"]
    steps = [(b.median / a.median, x, y) for (x, a), (y, b) in itertools.pairwise(speeds.items())]
    if steps:
        factor, low, high = max(steps)
        found.append(f"the steepest step is {factor:.2f}x, from {low:g} % to {high:g} %")
    return found


def table(name: str, model_bytes: int, runs: list[dict[str, Any]], options: argparse.Namespace) -> Table:
    """Make the table of the report."""
    modes = sorted({run["mode"] for run in runs}, key=list(TOKENS).index)
    columns = {mode: spreads(runs, mode) for mode in modes}
    bounds = limits(runs)
    rows = []
    for share in sorted({run["share"] for run in runs}):
        cells = [columns[mode][share].text(2) if share in columns[mode] else "" for mode in modes]
        bound = f"{bounds[share]:.2f}" if share in bounds else ""
        rows.append((f"{share:g} %", format_size(int(model_bytes * share / 100)), *cells, bound))
    title = f"{name}, tokens/s, median (range) of {options.rounds} rounds; cap: budget + {format_size(options.beside)}"
    return Table(title, ("of the model", "budget", *modes, "limit"), rows)


def plot(name: str, runs: list[dict[str, Any]], file: Path) -> None:
    """Draw tokens/s against the budget into ``file``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "penstock"  # the same picture from the same figures
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for mode in TOKENS:
        speeds = spreads(runs, mode)
        if speeds:
            middle = [spread.median for spread in speeds.values()]
            low = [spread.median - spread.low for spread in speeds.values()]
            high = [spread.high - spread.median for spread in speeds.values()]
            axes.errorbar([*speeds], middle, yerr=[low, high], marker="o", markersize=3, capsize=2, label=mode)
    bounds = limits(runs)
    axes.plot([*bounds], [*bounds.values()], linestyle=":", color="gray", label="limit: computing or the drive")
    axes.set(xlabel="memory budget, % of the model", ylabel="tokens/s", title=name, yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(file, bbox_inches="tight", dpi=110)


def main() -> None:
    """Run all budgets in turn, and report."""
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="budgets in %% of the model")
    parser.add_argument("--peer-shares", type=float, nargs="*", default=(25, 50, 75, 100), help="those of the peers")
    parser.add_argument("--peer-rounds", type=int, default=1)
    parser.add_argument("--beside", type=size, default=size("648MiB"), help="the cap's room beside the budget")
    parser.add_argument("--plot", type=Path, help="a picture, .svg or .png")
    options = parser.parse_args()
    peers = ["accelerate"] + ["llama.cpp"] * bool(options.gguf)
    runs: list[dict[str, Any]] = []
    with open_runner(options) as run:
        for number in range(options.rounds):
            points = [("penstock", share) for share in options.shares]
            if number < options.peer_rounds:
                points += [(mode, share) for mode in peers for share in options.peer_shares]
            points.sort(key=lambda point: point[1], reverse=bool(number % 2))
            for mode, share in points:
                runs.append(measure(run, mode, share, options))
                if options.json:
                    write_results({"runs": runs}, options.json)
        found = table(options.model.name, run.model_bytes, runs, options)
    said = verdicts(spreads(runs, "penstock"))
    results = {"runs": runs, "limits": limits(runs), "verdicts": said}
    publish([found], results, json_file=options.json, markdown=options.markdown)
    print("\n".join(said))
    if options.plot:
        plot(options.model.name, runs, options.plot)


if __name__ == "__main__":
    main()
