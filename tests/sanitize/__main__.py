"""Runs the tests of the kernels on sanitized kernels: ``python -m tests.sanitize [LEVEL ...] [-- PYTEST OPTIONS]``."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from penstock.kernels.isa import SETTING
from penstock.kernels.native import RUNS

from .build import NoSanitizer, Sanitized, build
from .library import LIBRARY

ROOMS = ("formats", "products", "weights", "experts", "kv")
# A report ends the process, so pytest must not keep what is written to the terminal past sys.stderr.
_OPTIONS = ("-q", "--capture=sys", "-m", "not soak", "-p", "no:cacheprovider", "-p", "tests.sanitize.library")


def run(sanitized: Sanitized, level: str, options: Sequence[str]) -> int:
    """Run the tests with at most the instructions of ``level``. Returns the exit status."""
    environment = os.environ | {
        SETTING: level,
        LIBRARY: str(sanitized.library),
        "LD_PRELOAD": ":".join(sanitized.preload),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it has at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    tests = [] if any(option.startswith("tests/") for option in options) else [f"tests/kernels/{r}" for r in ROOMS]
    command = [sys.executable, "-m", "pytest", *_OPTIONS, *tests, *options]
    print(f"kernels with sanitizers, level {level}", flush=True)
    return subprocess.run(command, env=environment, check=False).returncode


def main(arguments: Sequence[str]) -> int:
    """Build, and run each level named, or all that run here."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    levels, options = arguments[:at] or RUNS, arguments[at + 1 :]
    try:
        sanitized = build(Path("build/sanitize").resolve())
    except NoSanitizer as error:
        print(error, file=sys.stderr)
        return 2
    return max(run(sanitized, level, options) for level in levels)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
