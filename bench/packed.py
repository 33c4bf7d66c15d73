"""Speed of weight formats: tokens/s of one checkpoint in each, in turn round by round, a process each.

    python bench/packed.py MODEL [--formats as-is int8 int4 nested:base] [--cap 1.2GB] [--host-memory 700MiB ...]

A format may have a quality behind a colon. With ``--cap`` and ``--host-memory`` penstock runs under that cap, page
cache included; several budgets are several tables. Without them everything is in memory, read before it is timed. All
feed the same fixed random tokens. A ratio is of one round, to the first format. Needs root, as bench/compare.py does.
"""

import argparse
from typing import Any

from cap import UNCAPPED
from figures import Spread
from report import Table, publish, write_results
from rounds import Runner, make_parser, open_runner, print_run, size, take_turns

from penstock.tiering.units import format_size

FORMATS = ("as-is", "lossless", "int8", "int4", "nested", "nested:adaptive", "nested:base", "stacked", "stacked:base")


def settings_of(name: str) -> dict[str, str]:
    """Penstock's settings for a format as the command line names it."""
    format, _, quality = name.rpartition(":") if name.endswith((":full", ":base", ":adaptive")) else (name, "", "")
    return {"weights_format": format} | ({"weights_quality": quality} if quality else {})


def measure(run: Runner, name: str, tokens: int, options: argparse.Namespace, budget: int | None) -> dict[str, Any]:
    """Run the format ``name`` once, with ``budget`` bytes or everything in memory."""
    mode, memory = ("compute", "auto") if budget is None else ("penstock", budget)
    cap = options.cap or UNCAPPED
    return run.run(mode, tokens, cap=cap, host_memory=memory, settings=settings_of(name)) | {"mode": name}


def table(rounds: list[dict[str, dict[str, Any]]], budget: int | None, options: argparse.Namespace) -> Table:
    """Make the table of one budget."""
    first = next(iter(options.formats))
    rows = []
    for name in options.formats:
        runs = [each[name] for each in rounds]
        ratios = [each[name]["tokens_per_second"] / each[first]["tokens_per_second"] for each in rounds]
        rows.append(
            (
                name,
                Spread.of([run["tokens_per_second"] for run in runs]).text(1),
                "" if name == first else Spread.of(ratios).text(2, "x"),
                f"{Spread.of([run['flash_bytes_per_token'] / 1e6 for run in runs]).median:.0f}",
                f"{Spread.of([run['hit_ratio'] for run in runs]).median:.2f}",
                format_size(max(run["peak_resident_bytes"] for run in runs)),
            )
        )
    where = "everything in memory" if budget is None else f"host_memory {format_size(budget)}"
    cap = f", cap {format_size(options.cap)}" if options.cap else ""
    title = f"{options.model.name}, {where}{cap}, {options.rounds} rounds of {options.tokens} tokens"
    return Table(title, ("", "tokens/s", f"of {first}", "MB a token", "in memory", "peak resident"), rows)


def main() -> None:
    """Run all formats in turn, and report."""
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--cap", type=size, help="the cap, page cache and the process itself included")
    parser.add_argument("--host-memory", nargs="+", type=size, default=[None], help="penstock's budgets")
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    if options.cap and None in options.host_memory:
        parser.error("--cap needs --host-memory: not everything is in memory then")
    tables: list[Table] = []
    results: list[dict[str, Any]] = []
    with open_runner(options) as run:
        for name in options.formats:  # pack it
            measure(run, name, 0, options, options.host_memory[0])
        for budget in options.host_memory:
            rounds: list[dict[str, dict[str, Any]]] = []
            for number in range(options.rounds):
                done = {}
                for name in take_turns(options.formats, number):
                    done[name] = measure(run, name, options.tokens, options, budget)
                    print_run(done[name])
                rounds.append(done)
                if options.json:
                    write_results({"results": [*results, {"budget": budget, "rounds": rounds}]}, options.json)
            results.append({"budget": budget, "rounds": rounds})
            tables.append(table(rounds, budget, options))
    publish(tables, {"results": results}, json_file=options.json, markdown=options.markdown)


if __name__ == "__main__":
    main()
