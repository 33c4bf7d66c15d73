"""Penstock beside accelerate's disk offload on one checkpoint, interleaved, under a real memory cap.

    python bench/compare.py MODEL --cap 2GiB --host-memory 1400MiB [--rounds 5] [--ram]

Needs root (control groups, dropping the page cache) and ``pip install 'penstock[bench]'``. Prints medians over the
rounds and the ratio of each round; ``--json FILE`` keeps every run. ``--ram`` adds transformers with everything in
memory, which is not capped.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from cap import drop_page_cache, run_capped
from rich.console import Console
from rich.table import Table

from penstock.kernels.machine import measure_drive
from penstock.tiering.units import format_size, parse_size

TOKENS = {"penstock": 48, "accelerate": 6, "ram": 24}
UNCAPPED = 1 << 50


def run(mode: str, options: argparse.Namespace, store: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).parent / "decode.py"), mode, str(options.model), str(TOKENS[mode])]
    if mode == "penstock":
        command += ["--host-memory", options.host_memory, "--store", store]
    drop_page_cache()
    code, output = run_capped(command, UNCAPPED if mode == "ram" else parse_size(options.cap))
    if code:
        raise SystemExit(f"{mode} ended with status {code} under a cap of {options.cap}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cap", default="2GiB")
    parser.add_argument("--host-memory", default="1400MiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", default=None, help="where the bundle is kept; a temporary folder if not given")
    parser.add_argument("--ram", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    modes = ["penstock", "accelerate"] + ["ram"] * options.ram
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        store = options.store or scratch
        for number in range(options.rounds):
            drive = max(
                rate.bytes_per_second for rate in measure_drive(Path(store), sizes=(4 << 20,), depths=(4,)).rates
            )
            for mode in modes:
                found = run(mode, options, store) | {"round": number, "measured_drive": drive}
                runs.append(found)
                print(json.dumps(found), file=sys.stderr, flush=True)
    if options.json:
        options.json.write_text(json.dumps(runs, indent=1))

    def of(mode: str, key: str) -> list[float]:
        return [found[key] for found in runs if found["mode"] == mode]

    table = Table(title=f"{options.model.name}, cap {options.cap}, host_memory {options.host_memory}")
    for column in ("", "tokens/s (median)", "min..max", "first load s", "prefill 64 s", "peak resident"):
        table.add_column(column, justify="right")
    for mode in modes:
        speeds = of(mode, "tokens_per_second")
        table.add_row(
            mode,
            f"{statistics.median(speeds):.2f}",
            f"{min(speeds):.2f}..{max(speeds):.2f}",
            f"{of(mode, 'load_s')[0]:.1f}",
            f"{statistics.median(of(mode, 'prefill_s')):.2f}",
            format_size(int(max(of(mode, "peak_resident_bytes")))),
        )
    console = Console()
    console.print(table)
    ratios = [
        a / b for a, b in zip(of("penstock", "tokens_per_second"), of("accelerate", "tokens_per_second"), strict=True)
    ]
    console.print(f"penstock / accelerate, round by round: {', '.join(f'{r:.1f}x' for r in ratios)}")
    drive = statistics.median(of("penstock", "measured_drive"))
    console.print(f"median {statistics.median(ratios):.1f}x; drive {drive / 1e9:.2f} GB/s")
    for key in ("hit_ratio", "flash_bytes_per_token", "stall_share", "drive_busy_share", "drive_bytes_per_second"):
        console.print(f"{key}: {statistics.median(of('penstock', key)):.4g}")


if __name__ == "__main__":
    main()
