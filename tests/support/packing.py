"""Packing under adverse conditions: in a process of its own, and onto a drive that fills up."""

import os
import subprocess
import sys
from pathlib import Path

from penstock.tiering.progress import Quiet

CHILD = Path(__file__).with_name("pack_child.py")


def child(*arguments: object) -> str:
    """What ``pack_child.py`` prints."""
    return subprocess.run(
        [sys.executable, CHILD, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True, timeout=100
    ).stdout


class FillUp(Quiet):
    """Progress that at its ``n``-th advance takes all that is left of the drive below ``folder``, into ``filler``."""

    def __init__(self, folder: Path, n: int) -> None:
        self.filler, self.left = folder / "filler", n

    def advance(self, n: int) -> None:
        self.left -= 1
        if self.left == 0:
            with open(self.filler, "wb", buffering=0) as file:
                os.posix_fallocate(file.fileno(), 0, os.statvfs(self.filler.parent).f_bavail * 4096)
