"""Runs a script as if stored prompts were always read sooner than computed: reading_always.py SCRIPT [ARGUMENTS]."""

import runpy
import sys

from penstock.runtime.prefixes import prefix


def main() -> None:
    """Run the script that the arguments name."""
    prefix.worth_reading = lambda *_, **__: True
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
