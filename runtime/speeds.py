"""The speed of a drive for the reads of a model, measured: what blocks are dealt by, and predictions compared with."""

from pathlib import Path

from ..tiering.errors import ConfigError
from ..tiering.policy.reads import Reading


def drive_speed(folder: Path, size: int, reading: Reading, *, seconds: float = 0.5) -> float:
    """Bytes per second of reads of ``size`` bytes, made as ``reading`` says, from the drive below ``folder``.

    ``folder`` need not exist yet: the nearest one above it that does has the same drive. Raises ConfigError.
    """
    from ..kernels.machine import measure_drive

    folder = existing(folder)
    try:
        report = measure_drive(
            folder, sizes=(size,), depths=(reading.depth,), backends=(reading.backend,), seconds_each=seconds
        )
    except OSError as error:
        raise ConfigError(f"cannot measure the drive below {folder}: {error}; choose another with --store") from error
    return report.best.bytes_per_second


def existing(folder: Path) -> Path:
    """``folder``, or the nearest one above it that is there: it has the same drive."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())
