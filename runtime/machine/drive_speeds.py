"""Measures the speed of a drive for the reads of a model: blocks are dealt by it, predictions compared with it.

kernels/machine/read_rates.py times the reads. drive_rates_file.py keeps what was measured.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...tiering.driving.small_files import in_words
from ...tiering.errors import ConfigError
from ...tiering.policy.drive_reading import LARGEST_READ, Reading
from ...tiering.policy.trust import moved
from ...tiering.units import KiB, MiB

if TYPE_CHECKING:
    from .drive_rates_file import DriveRates

SIZES, DEPTHS, SECONDS = (128 * KiB, MiB, 4 * MiB, LARGEST_READ), (1, 2, 4, 8), 0.05
"""Sizes and depths to measure of a drive without kept rates, and seconds for each."""
_DEEPEST = 64
"""Reads in flight, at most, of a brief look."""
LOOK_BYTES, LOOK_SECONDS, LOOK_ROUNDS = 128 * MiB, 0.2, 4
"""A brief look at a drive whose rates are stale: bytes that are written for it, seconds of reading, and repeats."""


def drive_rates(folder: Path, *, refuted: bool = False) -> "DriveRates":
    """Rates of the drive that ``folder`` is on: kept ones, after a brief look where they are stale, or ones that are
    measured now, and kept. Doubtful ones, once stale, are measured anew, as are those that a run has ``refuted``.
    Raises ConfigError."""
    from ...kernels.machine.power import is_on_battery
    from . import drive_rates_file

    place = existing(folder)
    kept = drive_rates_file.load(place)
    if kept is not None and not refuted and not kept.measured.stale(time.time(), battery=is_on_battery()):
        return kept
    try:
        found = None if kept is None or refuted or kept.measured.doubtful else _look(place, kept)
        found = _measure(place) if found is None else found
    except OSError as error:
        raise _unmeasured(place, error) from error
    drive_rates_file.keep(place, found, anyway=refuted)
    return found


def _measure(place: Path) -> "DriveRates":
    """All rates of the drive of ``place``. Raises OSError."""
    from ...kernels.machine.machine import measure_drive
    from .drive_rates_file import DriveRates, spread_of_rates
    from .watch import Watch

    watch = Watch(place)
    report = measure_drive(place, sizes=SIZES, depths=DEPTHS, seconds_each=SECONDS, rounds=2)
    return DriveRates(list(report.rates), watch.done(spread_of_rates(report.rates), drive=True))


def _look(place: Path, kept: "DriveRates") -> "DriveRates | None":
    """``kept``, changed as the fastest of its rates has changed. Beside other programs, only what is left of it now is
    noted. None where this machine cannot read so. Raises OSError."""
    from ...kernels.io.backends import list_usable
    from ...kernels.machine.machine import measure_drive
    from .watch import Watch

    here = (*list_usable(), "buffered")
    able = [
        rate for rate in kept.rates if rate.backend in here and rate.size <= LARGEST_READ and rate.depth <= _DEEPEST
    ]
    if not able:
        return None
    best = max(able, key=lambda rate: rate.bytes_per_second)
    watch = Watch(place)
    report = measure_drive(
        place,
        sizes=(best.size,),
        depths=(best.depth,),
        backends=(best.backend,),
        seconds_each=LOOK_SECONDS,
        rounds=LOOK_ROUNDS,
        file_bytes=LOOK_BYTES,
    )
    now = watch.done(report.best.spread, drive=True)
    ratio = report.best.bytes_per_second / best.bytes_per_second
    if now.doubtful:
        return kept._replace(left=min(1.0, ratio))
    factor = moved(ratio)
    if factor == 1.0:
        return kept._replace(measured=kept.measured.seen_again(now))
    return kept.times(factor, replace(now, spread=max(now.spread, kept.measured.spread)))


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
