"""What the control groups (v1 and v2) that this process is in allow it: memory and processor time."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_OURS = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A control group that limits memory. ``limit`` and ``used`` in bytes.

    ``used`` leaves out page cache that nobody has mapped: the kernel drops it before it refuses memory.
    """

    folder: Path
    limit: int
    used: int


def memory_groups(process: Path = _OURS) -> list[MemoryGroup]:
    """Our own control group and its ancestors, as far as they limit memory; inner ones first."""
    groups = map(memory_group, _folders("memory", process))
    return [group for group in groups if group is not None]


def memory_group(folder: Path) -> MemoryGroup | None:
    """The control group of ``folder`` as it is now; None if it limits no memory, or is gone."""
    limits = [_number(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    usages = [_number(folder / name) for name in ("memory.current", "memory.usage_in_bytes")]
    limit = min((value for value in limits if value is not None), default=None)
    usage = next((value for value in usages if value is not None), None)
    if limit is None or usage is None:
        return None
    return MemoryGroup(folder, limit, max(0, usage - _idle_page_cache(folder)))


def processor_quota(process: Path = _OURS) -> float | None:
    """Processors' worth of time that the tightest of our control groups grants, or None when none limits it."""
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
    """Where our control group and its ancestors are mounted, own first: the v1 hierarchy of ``controller``, then v2's.

    Both, since either may be the one with the controller; the other then lacks the controller's files.
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
            # A path that is not below the mounted root belongs to another namespace: the root is all we see of it.
            folder = Path(point) if inside.startswith("..") else Path(point, inside)
            yield folder
            while folder != Path(point):
                folder = folder.parent
                yield folder


def _idle_page_cache(folder: Path) -> int:
    """Bytes of page cache in the group and below it that nobody has mapped.

    Not the inactive list alone: on which list a page read once ends up depends on the kernel's mood.
    """
    fields = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines())

    def field(v1: str, v2: str) -> int:
        # In v1 the plain fields leave out the groups below.
        return int(fields.get(f"total_{v1}", fields.get(v2, "0")))

    cached = field("inactive_file", "inactive_file") + field("active_file", "active_file")
    return max(0, cached - field("mapped_file", "file_mapped"))


def _unescaped(field: str) -> str:
    """A field of mountinfo with its octal escapes (blank, tab, newline, backslash) undone."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    """The number in ``file``; None when there is no such file or it says "max"."""
    text = _text(file)
    return int(text) if text.isdigit() else None
