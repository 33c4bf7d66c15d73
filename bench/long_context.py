"""Decoding behind a long context: KV in memory, on flash, certified, and transformers' cache, in turn round by round.

    python bench/long_context.py MODEL [--context 16384] [--kv 64MiB 1GiB] [--certified 128MiB] [--hot 8] [--rounds 3]

Weights are in memory, in every engine, each run is a process of its own. The context is random numbers put into the
cache; with ``--hot N`` keys are peaked, so that attention needs one page of N. "of the limit": the bytes of KV read for
a token, by the drive's speed (1 MiB reads, as many at a time as penstock makes, measured after each run), over the
time that the token took. "of exact": certified runs beside an exact one with the same [kv] host. Resident is over
budget if it exceeds host_memory by more than 128 MiB.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cap import drop_page_cache
from figures import Spread
from report import Table, publish
from rounds import take_turns

from penstock.kernels.io.directio import DirectFile
from penstock.kernels.machine.read_rates import read_rates
from penstock.tiering.units import MiB, format_size, parse_size

_DECODE = Path(__file__).with_name("long_decode.py")
_DEPTH = 8
_CERTIFIED = ", certified"


def run(options: argparse.Namespace, engine: str, settings: dict[str, str]) -> dict[str, Any]:
    """Run long_decode.py in a process of its own."""
    command = [sys.executable, str(_DECODE), engine, str(options.model), "--context", str(options.context)]
    command += ["--tokens", str(options.tokens), "--hot", str(options.hot)]
    if engine == "penstock":
        settings = {"host_memory": str(options.host_memory), "store": options.store, **settings}
        command += ["--set", *(f"{name}={value}" for name, value in settings.items())]
    drop_page_cache()
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def drive(store: Path) -> float:
    """Measure the bytes per second of large reads from the packed model."""
    files = sorted(store.rglob("*.bin"), key=lambda file: file.stat().st_size)
    with DirectFile(files[-1]) as opened:
        (rate,) = read_rates({"threads": [opened]}, [(MiB, _DEPTH)], 1.5, rounds=1)
    return rate.bytes_per_second


def cases(options: argparse.Namespace) -> dict[str, tuple[str, dict[str, str]]]:
    """List the runs of a round by name: engine and settings."""
    found: dict[str, tuple[str, dict[str, str]]] = {"transformers": ("transformers", {})}
    for size in options.kv:
        found[f"kv {size}"] = ("penstock", {"kv_host_memory": size})
    for size in options.certified:
        further = {"kv_attention": "certified", "kv_epsilon": str(options.epsilon), "kv_summary": options.summary}
        found[f"kv {size}{_CERTIFIED}"] = ("penstock", {"kv_host_memory": size, **further})
    return found


def row(name: str, rounds: list[dict[str, dict[str, Any]]]) -> tuple[str, ...]:
    """Collect the figures of one case."""
    runs = [each[name] for each in rounds]
    ratios = [each[name]["tokens_per_second"] / each["transformers"]["tokens_per_second"] for each in rounds]
    exact = name.removesuffix(_CERTIFIED)
    gains = [each[name]["tokens_per_second"] / each[exact]["tokens_per_second"] for each in rounds if exact in each]
    shares = [
        run["kv_bytes_per_token"] / run["drive"] / run["token_s"] for run in runs if run.get("kv_bytes_per_token")
    ]
    read = [run.get("kv_bytes_per_token", 0) / 1e6 for run in runs]
    return (
        name,
        Spread.of([run["tokens_per_second"] for run in runs]).text(2),
        Spread.of(ratios).text(2, "x"),
        Spread.of(gains).text(2, "x") if gains and exact != name else "",
        f"{Spread.of(read).median:.0f}",
        Spread.of(shares).text(2) if shares else "",
        f"{100 * runs[-1]['weighed']:.0f} %" if "weighed" in runs[-1] else "",
        f"{max(run.get('omitted', 0) for run in runs):.1e}" if "omitted" in runs[-1] else "",
        format_size(max(run["peak_resident_bytes"] for run in runs)),
    )


def main() -> None:
    """Run all cases in turn, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a checkpoint folder")
    parser.add_argument("--context", type=int, default=16384)
    parser.add_argument("--kv", nargs="*", default=["64MiB", "1GiB"], help="[kv] host of exact runs")
    parser.add_argument("--certified", nargs="*", default=[], help="[kv] host of certified runs")
    parser.add_argument("--epsilon", type=float, default=1e-3)
    parser.add_argument("--summary", default="int4")
    parser.add_argument("--hot", type=int, default=0, help="keys are large in one page of N (default 0: alike in all)")
    parser.add_argument("--host-memory", type=parse_size, default=parse_size("4GiB"))
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", help="folder for the bundle (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        options.store = options.store or aside
        todo = cases(options)
        rounds: list[dict[str, dict[str, Any]]] = []
        for number in range(options.rounds):
            done: dict[str, dict[str, Any]] = {}
            for name in take_turns([*todo], number):
                found = run(options, *todo[name])
                if name != "transformers":
                    found["drive"] = drive(Path(options.store))
                print(f"{name}: {found['tokens_per_second']:.2f} tokens/s", file=sys.stderr, flush=True)
                done[name] = found
            rounds.append(done)
    peaked = f", one page of {options.hot} hot" if options.hot else ""
    title = f"{options.model.name}, {options.context} tokens of context{peaked}, {options.rounds} rounds"
    columns = (
        "",
        "tokens/s",
        "of transformers",
        "of exact",
        "KV MB read a token",
        "of the limit",
        "pages",
        "omitted",
        "resident",
    )
    table = Table(title, columns, [row(name, rounds) for name in todo])
    publish([table], {"rounds": rounds}, json_file=options.json, markdown=options.markdown)


if __name__ == "__main__":
    main()
