"""How many bytes drives and this process have moved, as the system counts them."""

import os
from pathlib import Path
from typing import NamedTuple

_BLOCK, _OWN = Path("/sys/dev/block"), Path("/proc/self/io")
_SECTOR = 512
_READ, _WRITTEN = 2, 6  # places in a block device's counts, Documentation/block/stat.rst of Linux


class DriveUse(NamedTuple):
    """Bytes read and written, by all on the drive of a folder, and by this process on any drive."""

    everyone: int
    own: int


def read_drive_use(folder: Path) -> DriveUse | None:
    """Read the counts of the drive that ``folder`` is on. None where the system does not tell them, as of folders that
    are on no single drive."""
    try:
        device = os.stat(folder).st_dev
        place = _BLOCK / f"{os.major(device)}:{os.minor(device)}"
        if (place / "partition").exists():
            place = place.resolve().parent
        counts = (place / "stat").read_text().split()
        lines = dict(line.split(": ") for line in _OWN.read_text().splitlines())
        own = int(lines["read_bytes"]) + int(lines["write_bytes"])
        return DriveUse((int(counts[_READ]) + int(counts[_WRITTEN])) * _SECTOR, own)
    except (OSError, ValueError, IndexError, KeyError, AttributeError):
        return None
