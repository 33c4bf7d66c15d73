"""Runs the kernels on emulated processors, and compares with this one's plain C: ``python -m tests.emulated``."""

import sys
from pathlib import Path

from .build import MACHINES, NotHere, build, run
from .compare import compare, read

FOLDER = Path("build/emulated")


def main() -> int:
    """Return 0 if all is as it is here, 1 if something differs, 2 if it cannot be told."""
    try:
        programs = {machine: build(machine, FOLDER / machine.name) for machine in MACHINES}
        here, *_ = MACHINES
        runs, expected = read(run(here, programs[here]["plain"], emulated=False))
        print(f"here: {len(expected)} results in plain C; this processor runs {', '.join(runs)}")
        wrong = 0
        for machine, levels in programs.items():
            for level, program in levels.items():
                runs, found = read(run(machine, program, emulated=True))
                faults = compare(expected, found)
                if runs != machine.levels:
                    faults.append(f"it runs {', '.join(runs)}, not {', '.join(machine.levels)}")
                print(f"{machine.emulator}, {level}: {len(found)} results, {len(faults)} differ")
                for fault in faults:
                    print(f"  {fault}")
                wrong += len(faults)
    except NotHere as error:
        print(error, file=sys.stderr)
        return 2
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
