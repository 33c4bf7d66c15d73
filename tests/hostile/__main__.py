"""Plays cases: ``python -m tests.hostile FIRST LAST [--kinds NAMES] [--log FILE]``, and counts outcomes by kind."""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support import supervised

HANGS = 90.0
"""Seconds without a line after which a process counts as one that hangs: the first case makes honest files too."""


def main() -> int:
    """Run the command line. Returns whether something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("first", type=int, nargs="?", default=0, help="the first seed of each kind")
    parser.add_argument("last", type=int, nargs="?", default=10, help="the seed after the last one")
    parser.add_argument("--kinds", help="names of kinds, with commas between them; all if not given")
    parser.add_argument("--seconds", type=float, help="play on, with further seeds, for so long")
    parser.add_argument("--log", type=Path, help="file with a line for each case; those in it are not repeated")
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    from tests.hostile.play import KINDS, play, prepare

    if options.work:
        supervised.work(options.work, play, prepare)
        return 0
    names = options.kinds.split(",") if options.kinds else [*KINDS]
    lines: dict[str, dict[str, Any]] = {}  # by their cases
    first, until = options.first, time.monotonic() + (options.seconds or 0)
    while first == options.first or time.monotonic() < until:
        cases = [[name, seed] for name in names for seed in range(first, first + options.last - options.first)]
        played = supervised.play_all("tests.hostile", cases, options.log, hangs=HANGS)
        lines |= {json.dumps(line["case"]): line for line in played}
        first += options.last - options.first
    print_counts([*lines.values()])
    return int(any(line["finding"] for line in lines.values()))


def print_counts(lines: list[dict[str, Any]]) -> None:
    """A line for each kind: how many cases ended how."""
    columns = ("equal", "refused", "another", "findings")
    counts: dict[str, Counter[str]] = {}
    for line in lines:
        outcome = "findings" if line["finding"] else line["outcome"]
        counts.setdefault(line["case"][0], Counter())[outcome] += 1
    print(f"{'kind':20}" + "".join(f"{column:>10}" for column in ("cases", *columns)))
    for name, found in counts.items():
        print(f"{name:20}" + "".join(f"{number:10}" for number in (found.total(), *(found[c] for c in columns))))


if __name__ == "__main__":
    sys.exit(main())
