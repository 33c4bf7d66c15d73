"""The speed of a drive for the reads of a model, measured: what blocks are dealt by, and predictions compared with."""

from pathlib import Path

from ..tiering.errors import ConfigError
from ..tiering.units import PAGE, MiB, align_up

LARGEST_READ = 8 * MiB


def read_size(lengths: list[int]) -> int:
    """The read that stands for reads of blocks of these lengths: their mean, in whole pages, as far as reads go."""
    if not lengths:
        return MiB
    return min(LARGEST_READ, max(PAGE, align_up(sum(lengths) // len(lengths))))


def drive_speed(folder: Path, size: int, depth: int, *, seconds: float = 0.5) -> float:
    """Bytes per second of reads of ``size`` bytes, ``depth`` at a time, from the drive below ``folder``.

    ``folder`` need not exist yet: the nearest one above it that does has the same drive. Raises ConfigError.
    """
    from ..kernels.machine import measure_drive

    folder = existing(folder)
    try:
        report = measure_drive(folder, sizes=(size,), depths=(depth,), seconds_each=seconds)
    except OSError as error:
        raise ConfigError(f"cannot measure the drive below {folder}: {error}; choose another with --store") from error
    return report.best.bytes_per_second


def existing(folder: Path) -> Path:
    """``folder``, or the nearest one above it that is there: it has the same drive."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())
