"""Plays cases by their seeds, or one that is written out."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from . import supervise
from .case import Case
from .play import play
from .shrink import shrink


def main() -> int:
    """Run the command line. Returns whether something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("first", nargs="?", help="a seed, or a case as a line of JSON")
    parser.add_argument("last", type=int, nargs="?", help="the seed after the last one")
    parser.add_argument("--log", type=Path, help="file with a line for each case; those in it are not repeated")
    parser.add_argument("--shrink", action="store_true", help="make a case that fails smaller")
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        supervise.work(options.work)
        return 0
    if options.first is None:
        parser.error("name a seed")
    if options.last is not None:
        return int(supervise.play_all([*range(int(options.first), options.last)], options.log) > 0)
    return _play_one(
        Case.read(options.first) if options.first.startswith("{") else Case.of(int(options.first)), options
    )


def _play_one(case: Case, options: argparse.Namespace) -> int:
    print(case)
    with tempfile.TemporaryDirectory() as folder:
        names = iter(range(10**6))

        def once_more(some: Case) -> str:
            return play(some, Path(folder) / str(next(names))).finding

        report = play(case, Path(folder) / str(next(names)))
        print(report)
        if report.finding and options.shrink:
            small = shrink(case, lambda less: once_more(less)[:12] == report.finding[:12])
            print(small)
            print(once_more(small))
    return int(bool(report.finding))


if __name__ == "__main__":
    sys.exit(main())
