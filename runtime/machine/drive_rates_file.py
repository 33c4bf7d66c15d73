"""Cached rates of drives, in one small file, so that not every start has to measure again."""

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from ...kernels.io.system import SYSTEM
from ...kernels.machine.read_rates import ReadRate
from . import cachefile

NAME = "drives.json"

MOST_DRIVES = 32
"""Drives that the file holds; the one measured longest ago goes first."""


class _Rate(cachefile.Strict):
    backend: str
    size: int = Field(gt=0, le=1 << 40, multiple_of=4096)
    depth: int = Field(gt=0, le=1 << 16)
    bytes_per_second: float = Field(ge=1, le=1e15, allow_inf_nan=False)


class _MeasuredDrive(cachefile.Strict):
    """Rates, and the kernel and liburing that they were measured with: others read at another speed."""

    drive: str
    kernel: str
    liburing: str
    rates: tuple[_Rate, ...]


class _RatesFile(cachefile.Strict):
    version: Literal[1] = 1
    drives: tuple[_MeasuredDrive, ...] = ()


def load(folder: Path) -> list[ReadRate]:
    """The rates of the drive that ``folder`` is on; none where it was not measured with this system."""
    wanted = _signature(folder)
    for drive in _read().drives:
        if (drive.drive, drive.kernel, drive.liburing) == wanted:
            return [ReadRate(rate.size, rate.depth, rate.bytes_per_second, rate.backend) for rate in drive.rates]
    return []


def keep(folder: Path, rates: Sequence[ReadRate]) -> Path | None:
    """Keep ``rates`` for the drive that ``folder`` is on, in place of older ones. Returns the file, or None if
    it cannot be written."""
    name, kernel, liburing = _signature(folder)
    measured = _MeasuredDrive(
        drive=name,
        kernel=kernel,
        liburing=liburing,
        rates=tuple(
            _Rate(backend=rate.backend, size=rate.size, depth=rate.depth, bytes_per_second=rate.bytes_per_second)
            for rate in rates
        ),
    )
    others = [drive for drive in _read().drives if drive.drive != name]
    text = _RatesFile(drives=(*others[-MOST_DRIVES + 1 :], measured)).model_dump_json(indent=1)
    return cachefile.write(NAME, text)


def _read() -> _RatesFile:
    try:
        return _RatesFile.model_validate_json(cachefile.read(NAME) or b"")
    except ValidationError:
        return _RatesFile()


def _signature(folder: Path) -> tuple[str, str, str]:
    """Names of the drive, the kernel and the liburing package."""
    try:
        liburing = metadata.version("liburing")
    except metadata.PackageNotFoundError:
        liburing = ""
    return SYSTEM.name_drive(folder), platform.release(), liburing
