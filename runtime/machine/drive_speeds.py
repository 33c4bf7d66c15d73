"""Measures the speed of a drive for the reads of a model: blocks are dealt by it, predictions compared with it.

kernels/machine/read_rates.py times the reads. drive_rates_file.py keeps what was measured.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ...tiering.driving.small_files import in_words
from ...tiering.errors import ConfigError
from ...tiering.policy.drive_reading import LARGEST_READ, Reading
from ...tiering.units import KiB, MiB

if TYPE_CHECKING:
    from ...kernels.machine.read_rates import ReadRate

SIZES, DEPTHS, SECONDS = (128 * KiB, MiB, 4 * MiB, LARGEST_READ), (1, 2, 4, 8), 0.05
"""Sizes and depths to measure of a drive without kept rates, and seconds for each."""


def drive_rates(folder: Path) -> "list[ReadRate]":
    """Rates of the drive that ``folder`` is on: kept ones, or ones that are measured now and kept. Raises
    ConfigError."""
    from ...kernels.machine.machine import measure_drive
    from . import drive_rates_file

    place = existing(folder)
    if kept := drive_rates_file.load(place):
        return kept
    try:
        report = measure_drive(place, sizes=SIZES, depths=DEPTHS, seconds_each=SECONDS, rounds=1)
    except OSError as error:
        raise _unmeasured(place, error) from error
    drive_rates_file.keep(place, report.rates)
    return list(report.rates)


def drive_speed(folder: Path, size: int, reading: Reading, *, seconds: float = 0.5) -> float:
    """Bytes per second of reads of ``size`` bytes, as ``reading`` says, from the drive that ``folder`` is on.

    ``folder`` need not exist yet: the nearest parent that does is on the same drive. Raises ConfigError.
    """
    from ...kernels.machine.machine import measure_drive

    folder = existing(folder)
    try:
        report = measure_drive(
            folder, sizes=(size,), depths=(reading.depth,), backends=(reading.backend,), seconds_each=seconds
        )
    except OSError as error:
        raise _unmeasured(folder, error) from error
    return report.best.bytes_per_second


def existing(folder: Path) -> Path:
    """``folder``, or its nearest parent that exists: it is on the same drive."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _unmeasured(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot measure the drive below {folder}: {in_words(error)}; or choose another with --store")
