"""A real memory cap: a control group (v1 or v2) of its own, page cache counted, swap off. Needs root.

python bench/cap.py LIMIT COMMAND...      # drops the page cache first. LIMIT is like 2GiB or 1.2GB
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
_ENTER = "--enter"

UNCAPPED = 1 << 50
"""A limit that no machine reaches."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a command: exit status, standard output ("" if not captured), and the peak of its group in bytes."""

    status: int
    output: str
    peak: int


@contextlib.contextmanager
def _group(limit: int) -> Iterator[Path]:
    v1 = (_V1 / "memory.limit_in_bytes").exists()
    group = (_V1 if v1 else _V2) / f"penstock-bench-{os.getpid()}"
    group.mkdir()
    try:
        if v1:
            (group / "memory.limit_in_bytes").write_text(str(limit))
        else:
            (group / "memory.max").write_text(str(limit))
            with contextlib.suppress(OSError):  # no swap controller, no swap to turn off
                (group / "memory.swap.max").write_text("0")
        yield group
    finally:
        group.rmdir()


def _peak(group: Path) -> int:
    files = [group / name for name in ("memory.max_usage_in_bytes", "memory.peak")]
    return next((int(file.read_text()) for file in files if file.exists()), 0)


def run_capped(command: Sequence[str], limit: int, *, capture: bool = True) -> Ended:
    """Run ``command`` within ``limit`` bytes. Its standard output is captured if ``capture``."""
    with _group(limit) as group:
        child = subprocess.run(
            [sys.executable, __file__, _ENTER, str(group / "cgroup.procs"), *command],
            stdout=subprocess.PIPE if capture else None,
            text=True,
            check=False,
        )
        return Ended(child.returncode, child.stdout or "", _peak(group))


def drop_page_cache() -> None:
    """Write dirty pages and drop the page cache, so that a run starts from the drive."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def main() -> None:
    """Run the command of the command line under a cap."""
    from penstock.tiering.units import format_size, parse_size

    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    limit = parse_size(sys.argv[1])
    drop_page_cache()
    ended = run_capped(sys.argv[2:], limit, capture=False)
    print(f"cap {format_size(limit)}, at most {format_size(ended.peak)} at a time, status {ended.status}")
    raise SystemExit(1 if ended.status else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == [_ENTER]:  # the child: enter the group, then become the command
        Path(sys.argv[2]).write_text(str(os.getpid()))
        os.execvp(sys.argv[3], sys.argv[3:])
    main()
