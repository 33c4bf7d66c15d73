"""Runs a command under a real memory cap: a control group (v1 or v2) of its own, page cache counted, swap off."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


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


def run_capped(command: Sequence[str], limit: int) -> tuple[int, str]:
    """Exit status and standard output of ``command``, held to ``limit`` bytes. Needs root."""
    with _group(limit) as group:
        child = subprocess.run(
            [sys.executable, __file__, str(group / "cgroup.procs"), *command], stdout=subprocess.PIPE, text=True
        )
    return child.returncode, child.stdout


def drop_page_cache() -> None:
    """So that every run starts from the drive. Needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


if __name__ == "__main__":  # the child: enter the group, then become the command
    Path(sys.argv[1]).write_text(str(os.getpid()))
    os.execvp(sys.argv[2], sys.argv[2:])
