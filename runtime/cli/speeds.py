"""The speeds that plan and bench compare with, measured beside them."""

from pathlib import Path

from ...tiering.errors import ConfigError
from ...tiering.policy.reads import Reading


def drive_speed(folder: Path, size: int, reading: Reading, *, seconds: float = 0.5) -> float:
    """Bytes per second of reads of ``size`` bytes, made as ``reading`` says, from the drive below ``folder``.

    ``folder`` need not exist yet: the nearest one above it that does has the same drive. Raises ConfigError.
    """
    from ...kernels.machine import measure_drive

    folder = nearest(folder)
    try:
        report = measure_drive(
            folder, sizes=(size,), depths=(reading.depth,), backends=(reading.backend,), seconds_each=seconds
        )
    except OSError as error:
        raise ConfigError(f"cannot measure the drive below {folder}: {error}; choose another with --store") from error
    return report.best.bytes_per_second


def nearest(folder: Path) -> Path:
    """``folder``, or the nearest one above it that is there and so on the same drive."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())
