"""Cached rates of drives, in one small file, so that not every start has to measure again."""

import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError

from ...kernels.io.system import SYSTEM
from ...kernels.machine.read_rates import ReadRate
from ...tiering.policy.measured import Measured
from . import cachefile

NAME = "drives.json"

MOST_DRIVES = 32
"""Drives that the file holds; the one measured longest ago goes first."""


class _Rate(cachefile.Strict):
    backend: str
    size: int = Field(gt=0, le=1 << 40, multiple_of=4096)
    depth: int = Field(gt=0, le=1 << 16)
    bytes_per_second: float = Field(ge=1, le=1e15, allow_inf_nan=False)
    spread: float = Field(ge=0, lt=1, allow_inf_nan=False)


class _MeasuredDrive(cachefile.Strict):
    """Rates, when and how well they were measured, and the kernel and liburing then: others read at another speed."""

    drive: str
    kernel: str
    liburing: str
    measured: Measured
    rates: tuple[_Rate, ...] = Field(min_length=1, max_length=1000)


class _RatesFile(cachefile.Strict):
    version: Literal[2] = 2
    drives: tuple[_MeasuredDrive, ...] = ()


class DriveRates(NamedTuple):
    """Rates of a drive, when and how well they were ``measured``, and the share of them that the drive had to give when
    it was looked at beside other programs."""

    rates: list[ReadRate]
    measured: Measured
    left: float = 1.0

    def times(self, factor: float, measured: Measured) -> "DriveRates":
        """All rates changed by ``factor``, as was ``measured`` by a brief look."""
        changed = [replace(rate, bytes_per_second=max(1.0, rate.bytes_per_second * factor)) for rate in self.rates]
        return DriveRates(changed, measured)


def spread_of_rates(rates: Sequence[ReadRate]) -> float:
    """The typical spread of ``rates``."""
    return statistics.median(rate.spread for rate in rates)


def load(folder: Path) -> DriveRates | None:
    """The rates of the drive that ``folder`` is on; None where it was not measured with this system."""
    wanted = _signature(folder)
    for drive in _read().drives:
        if (drive.drive, drive.kernel, drive.liburing) == wanted:
            return DriveRates([ReadRate(**rate.model_dump()) for rate in drive.rates], drive.measured)
    return None


def rates(folder: Path) -> list[ReadRate]:
    """Only the rates of ``load``, none where there are none."""
    found = load(folder)
    return [] if found is None else found.rates


def keep(folder: Path, found: DriveRates, *, anyway: bool = False) -> Path | None:
    """Keep ``found`` for the drive that ``folder`` is on, in place of older rates, unless these can be trusted more
    (``anyway``: even then, for they were refuted). Returns the file, or None if it cannot be written."""
    kept = load(folder)
    if kept is not None and not anyway and not found.measured.replaces(kept.measured):
        return cachefile.place(NAME)
    name, kernel, liburing = _signature(folder)
    measured = _MeasuredDrive(
        drive=name,
        kernel=kernel,
        liburing=liburing,
        measured=found.measured,
        rates=tuple(_Rate(**asdict(rate)) for rate in found.rates),
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
