"""Limits of this process's control groups (v1 and v2): memory and processor time."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_OURS = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A control group that limits memory. ``limit`` and ``used`` are in bytes.

    ``used`` leaves out unmapped page cache, because the kernel drops it before it refuses memory.
    """

    folder: Path
    limit: int
    used: int


def find_memory_groups(process: Path = _OURS) -> list[MemoryGroup]:
    """Return this process's control group and its ancestors, inner ones first, if they limit memory."""
    groups = map(read_memory_group, _folders("memory", process))
    return [group for group in groups if group is not None]


def read_memory_group(folder: Path) -> MemoryGroup | None:
    """Return the control group of ``folder`` as it is now. None if it limits no memory, or no longer exists."""
    limits = [_number(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    usages = [_number(folder / name) for name in ("memory.current", "memory.usage_in_bytes")]
    limit = min((value for value in limits if value is not None), default=None)
    usage = next((value for value in usages if value is not None), None)
    if limit is None or usage is None:
        return None
    return MemoryGroup(folder, limit, max(0, usage - _idle_page_cache(folder)))


def find_processor_quota(process: Path = _OURS) -> float | None:
    """Return the number of processors that the tightest control group grants, or None if none limits it."""
    quotas = []
    for folder in _folders("cpu", process):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            quota, period = (_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _folders(controller: str, process: Path) -> Iterator[Path]:
    """Yield the mount points of our control group and its ancestors, own first.

    The v1 hierarchy of ``controller`` comes before v2's. Either may have the controller. The other then lacks the
    controller's files.
    """
    paths = {}
    for line in _text(process / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths["cgroup2"] = path
        elif controller in controllers.split(","):
            paths["cgroup"] = path
    for line in _text(process / "mountinfo").splitlines():
        mount, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        root, point = (_unescaped(field) for field in mount.split(" ")[3:5])
        if kind in paths and (kind == "cgroup2" or controller in options.split(",")):
            inside = os.path.relpath(paths[kind], root)
            # A path outside of the mounted root belongs to another namespace, of which we see only the root.
            folder = Path(point) if inside.startswith("..") else Path(point, inside)
            yield folder
            while folder != Path(point):
                folder = folder.parent
                yield folder


def _idle_page_cache(folder: Path) -> int:
    """Return the bytes of unmapped page cache in the group and below it.

    The inactive list alone does not tell: the kernel may put a page that was read once on either list.
    """
    fields = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines())

    def field(v1: str, v2: str) -> int:
        # In v1 the plain fields leave out the groups below.
        return int(fields.get(f"total_{v1}", fields.get(v2, "0")))

    cached = field("inactive_file", "inactive_file") + field("active_file", "active_file")
    return max(0, cached - field("mapped_file", "file_mapped"))


def _unescaped(field: str) -> str:
    """Decode the octal escapes (blank, tab, newline, backslash) in a field of mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    """Read the number in ``file``. None if there is no such file or it says "max"."""
    text = _text(file)
    return int(text) if text.isdigit() else None
