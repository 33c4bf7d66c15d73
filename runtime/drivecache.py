"""What was measured of drives, kept in one small file, so that not every start has to measure again."""

import os
import platform
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..kernels.trial import ReadRate

MOST_DRIVES = 32
"""Drives that the file tells of; the one measured longest ago goes first."""

_LARGEST_FILE = 1 << 20


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class _Rate(_Strict):
    backend: str
    size: int = Field(gt=0, multiple_of=4096)
    depth: int = Field(gt=0)
    bytes_per_second: float = Field(gt=0, allow_inf_nan=False)


class _Drive(_Strict):
    """Rates, and what they held for: another kernel or liburing reads at another speed."""

    drive: str
    kernel: str
    liburing: str
    rates: tuple[_Rate, ...]


class _File(_Strict):
    version: Literal[1] = 1
    drives: tuple[_Drive, ...] = ()


def place() -> Path:
    """Where the file is, or would be."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "penstock" / "drives.json"


def load(folder: Path) -> list[ReadRate]:
    """The rates of the drive below ``folder`` as it is now; none where it, or this system, was not measured.

    A file that is damaged, or that others may write to, counts as none.
    """
    wanted = _signature(folder)
    for drive in _read().drives:
        if (drive.drive, drive.kernel, drive.liburing) == wanted:
            return [ReadRate(rate.size, rate.depth, rate.bytes_per_second, rate.backend) for rate in drive.rates]
    return []


def keep(folder: Path, rates: Sequence[ReadRate]) -> Path | None:
    """Keep ``rates`` for the drive below ``folder``, in place of older ones; says where, None if it cannot."""
    name, kernel, liburing = _signature(folder)
    measured = _Drive(
        drive=name,
        kernel=kernel,
        liburing=liburing,
        rates=tuple(
            _Rate(backend=rate.backend, size=rate.size, depth=rate.depth, bytes_per_second=rate.bytes_per_second)
            for rate in rates
        ),
    )
    others = [drive for drive in _read().drives if drive.drive != name]
    text = _File(drives=(*others[-MOST_DRIVES + 1 :], measured)).model_dump_json(indent=1)
    path, aside = place(), ""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(prefix=".drives-", dir=path.parent)  # readable for its owner only
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        if aside:
            with suppress(OSError):
                os.unlink(aside)
        return None
    return path


def _read() -> _File:
    try:
        descriptor = os.open(place(), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            foreign = status.st_uid != os.geteuid() or status.st_mode & 0o022 or not stat.S_ISREG(status.st_mode)
            if foreign or status.st_size > _LARGEST_FILE:
                return _File()
            return _File.model_validate_json(file.read())
    except (OSError, ValidationError):
        return _File()


def _signature(folder: Path) -> tuple[str, str, str]:
    """Names of the drive, the kernel and the liburing package."""
    try:
        liburing = metadata.version("liburing")
    except metadata.PackageNotFoundError:
        liburing = ""
    return f"{os.stat(folder).st_dev:x}-{os.statvfs(folder).f_fsid:x}", platform.release(), liburing
