"""Penstock beside what people use today, and beside its own limit: one run, in turn round by round, under a real cap.

    python bench/compare.py MODEL --cap 2GiB --host-memory 1400MiB --gguf MODEL.gguf [--rounds 5]

Needs root (control groups, dropping the page cache) and ``pip install 'penstock[bench]'``. In every round, each in a
process of its own with the page cache dropped before:

    penstock     under the cap
    accelerate   disk offload of every layer, under the cap
    llama.cpp    the file mapped, under the cap (with --gguf, from bench/to_gguf.py)
    ram          transformers in memory with eager experts, no cap
    compute      penstock with everything in memory, no cap: computing alone, with the same bits

and, right before and after penstock, the drive itself: the blocks that penstock reads, as many in flight. The limit of
a token is max(compute, bytes that penstock read for it / drive), all three of the same round. All feed the same fixed
random tokens: a prompt, then one by one, which is what is timed; how many is --tokens, the peers being slow. Speeds are
means over those tokens; of the rounds, median and range. Rows of "bits" say whether logits are bitwise penstock's.
"""

import argparse
from typing import Any

from figures import Spread, limit_seconds
from report import Table, publish, write_results
from rounds import make_parser, open_runner, print_run, size, take_turns

from penstock.tiering.units import format_size

TOKENS = {"penstock": 48, "accelerate": 6, "llama.cpp": 6, "ram": 48, "compute": 48}


def judge(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Compute ratios and fractions, each within one round."""
    own = [runs["penstock"] for runs in rounds]
    found: dict[str, Any] = {
        f"times_{mode}": [runs["penstock"]["tokens_per_second"] / runs[mode]["tokens_per_second"] for runs in rounds]
        for mode in rounds[0]
        if mode != "penstock"
    }
    for name in ("hit_ratio", "flash_bytes_per_token", "bytes_per_read", "stall_share", "drive_busy_share"):
        found[name] = [run[name] for run in own]
    found["drive"] = [run["drive"] for run in own if run["drive"]]
    if "compute" in rounds[0]:
        limits = [
            limit_seconds(
                compute=1 / runs["compute"]["tokens_per_second"],
                bytes_per_token=runs["penstock"]["flash_bytes_per_token"] if runs["penstock"]["drive"] else 0.0,
                drive_bytes_per_second=runs["penstock"]["drive"] or 1.0,
            )
            for runs in rounds
        ]
        found["compute_seconds"] = [1 / runs["compute"]["tokens_per_second"] for runs in rounds]
        found["compute_bytes_per_token"] = [runs["compute"]["flash_bytes_per_token"] for runs in rounds]
        found["limit_seconds"] = limits
        found["fraction_of_limit"] = [limit * run["tokens_per_second"] for limit, run in zip(limits, own, strict=True)]
    if own[0]["streamed_bytes"]:
        found["read_over_streamed"] = [run["flash_bytes_per_token"] / run["streamed_bytes"] for run in own]
    return found


def same_bits(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, bool]:
    """Say for each engine whether its logits, as far as it went, are bitwise penstock's."""
    wanted = rounds[0]["penstock"]["digests"]
    return {
        mode: all(run["digests"][: len(wanted)] == wanted[: len(run["digests"])] for run in (r[mode] for r in rounds))
        for mode in rounds[0]
        if rounds[0][mode]["digests"][0]
    }


def tables(title: str, first: dict[str, Any], rounds: list[dict[str, dict[str, Any]]]) -> list[Table]:
    """Make the tables of the report."""
    found, bits = judge(rounds), same_bits(rounds)
    rows = []
    for mode in rounds[0]:
        runs = [each[mode] for each in rounds]
        rows.append(
            (
                mode,
                Spread.of([run["tokens_per_second"] for run in runs]).text(3),
                Spread.of([run["tokens_per_second_median"] for run in runs]).text(3),
                Spread.of(found[f"times_{mode}"]).text(2, "x") if mode != "penstock" else "",
                f"{Spread.of([run['load_s'] for run in runs]).median:.1f}",
                Spread.of([run["prompt_s"] for run in runs]).text(2),
                format_size(max(run["peak_resident_bytes"] for run in runs)),
                format_size(max(run["group_peak_bytes"] for run in runs)),
                {True: "yes", False: "no", None: ""}[bits.get(mode)],
            )
        )
    columns = (
        "",
        "tokens/s",
        "of the median token",
        "penstock is",
        "load s",
        "prompt s",
        "peak resident",
        "peak of the group",
        "bits",
    )
    speeds = Table(title, columns, rows)
    lines = [
        ("first load, packing included", f"{first['load_s']:.1f} s"),
        ("its peak resident", format_size(first["load_resident_bytes"])),
        ("found in memory", Spread.of(found["hit_ratio"]).text(3)),
        ("read per token, MB", Spread.of([n / 1e6 for n in found["flash_bytes_per_token"]]).text(1)),
        ("mean read, MB", Spread.of([n / 1e6 for n in found["bytes_per_read"]]).text(2)),
        ("share of the time waited", Spread.of(found["stall_share"]).text(3)),
        ("share of the time the drive is busy", Spread.of(found["drive_busy_share"]).text(3)),
    ]
    if found["drive"]:
        lines.append(("the drive itself, GB/s", Spread.of([n / 1e9 for n in found["drive"]]).text(2)))
    if "read_over_streamed" in found:
        lines.append(("read per token / what is streamed", Spread.of(found["read_over_streamed"]).text(4)))
    if "limit_seconds" in found:
        lines += [
            ("computing alone, s per token", Spread.of(found["compute_seconds"]).text(4)),
            ("limit, s per token", Spread.of(found["limit_seconds"]).text(4)),
            ("fraction of the limit", Spread.of(found["fraction_of_limit"]).text(3)),
        ]
    return [speeds, Table("Penstock and its limit", ("", "median (range)"), lines)]


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--cap", type=size, required=True, help="the cap, page cache and the process itself included")
    parser.add_argument("--host-memory", default="auto", help="penstock's budget under it")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--modes", nargs="+", choices=TOKENS, help="all of them if not given")
    parser.add_argument(
        "--tokens", nargs="+", default=[], metavar="MODE=N", help=f"timed tokens of a mode; {TOKENS} if not given"
    )
    options = parser.parse_args()
    options.counts = dict(TOKENS)
    for text in options.tokens:
        mode, _, count = text.partition("=")
        if mode not in TOKENS or not count.isdigit() or not int(count):
            parser.error(f"--tokens {text} is none of MODE=N with MODE one of {', '.join(TOKENS)}")
        options.counts[mode] = int(count)
    if options.modes and "llama.cpp" in options.modes and not options.gguf:
        parser.error("llama.cpp needs --gguf")
    options.modes = options.modes or [mode for mode in TOKENS if mode != "llama.cpp" or options.gguf]
    if "penstock" not in options.modes:
        parser.error("--modes lacks penstock, which all are compared with")
    return options


def main() -> None:
    """Run all engines in turn, and report."""
    options = parse_options()
    rounds: list[dict[str, dict[str, Any]]] = []
    with open_runner(options) as run:
        first = run.run("penstock", 0, cap=options.cap, host_memory=options.host_memory, prompt=options.prompt)
        for number in range(options.rounds):
            done = {}
            for mode in take_turns(options.modes, number):
                done[mode] = run.run(
                    mode, options.counts[mode], cap=options.cap, host_memory=options.host_memory, prompt=options.prompt
                )
                print_run(done[mode])
            rounds.append({mode: done[mode] for mode in options.modes})
            results = {"first": first, "rounds": rounds, "judged": judge(rounds), "same_bits": same_bits(rounds)}
            if options.json:
                write_results(results, options.json)
    title = (
        f"{options.model.name} ({format_size(run.model_bytes)}), cap {format_size(options.cap)}, host_memory "
        f"{options.host_memory}, {options.rounds} rounds, tokens timed: "
        + ", ".join(f"{mode} {options.counts[mode]}" for mode in options.modes)
    )
    publish(tables(title, first, rounds), results, json_file=options.json, markdown=options.markdown)


if __name__ == "__main__":
    main()
