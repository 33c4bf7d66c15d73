"""Chooses how to read from a drive: as configured, as measured earlier, or as measured now, briefly."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ...kernels.io import backends
from ...kernels.io.directio import DirectFile
from ...kernels.io.reading import BackendUnavailable, Reader
from ...kernels.machine.read_rates import ReadRate, read_rates
from ...tiering.errors import ConfigError
from ...tiering.policy.drive_reading import LARGEST_READ, UNMEASURED, Reading, choose, fixed
from ...tiering.units import MiB
from ..config.settings import Io
from . import drive_rates_file
from .drive_rates_file import DriveRates, spread_of_rates
from .watch import Watch

BRIEF_CELLS = tuple((size, depth) for size in (MiB, 4 * MiB) for depth in (1, 2, 4, 8))
BRIEF_SECONDS = 0.9
"""Sizes and depths to measure, and the time for it in seconds, when a model is loaded from an unmeasured drive."""

WORTH_MEASURING = 256 * MiB
"""Bytes of a bundle that is worth measuring for: a smaller one is soon in some cache, however it is read."""


def reading_of(files: Sequence[Path], io: Io, *, block: int) -> Reading:
    """How to read the data ``files`` of a bundle, in blocks of about ``block`` bytes.

    Where ``io`` leaves a choice open, rates of this drive decide: kept ones, or ones that are measured now and kept.
    Raises ConfigError for a backend that was asked for and does not work here.
    """
    backend, depth = _decided(io)
    if backend is not None and depth is not None:
        return fixed(UNMEASURED, backend=backend, depth=depth)
    folder, drive = files[0].parent, files[0].stat().st_dev
    files = [file for file in files if file.stat().st_dev == drive]  # rates are kept by drive
    rates = drive_rates_file.rates(folder)
    if not rates and sum(file.stat().st_size for file in files) >= WORTH_MEASURING:
        watch = Watch(folder)
        rates = _measure(files)
        if rates:
            measured = watch.done(spread_of_rates(rates), drive=True)
            drive_rates_file.keep(folder, DriveRates(rates, measured))
    return _chosen(rates, backend, depth, block)


def kept_reading(folder: Path, io: Io, *, block: int) -> Reading:
    """As ``reading_of``, for a bundle that may be put into ``folder``. Measures nothing."""
    return _chosen(drive_rates_file.rates(folder), *_decided(io), block)


def open_reader(reading: Reading, drives: int = 1) -> Reader:
    """A reader as ``reading`` says, for so many ``drives``. Raises ConfigError where this machine cannot read so."""
    try:
        return backends.open_reader(reading.backend, reading.depth * drives, LARGEST_READ)
    except BackendUnavailable as error:
        raise ConfigError(f'{error}; write [io] backend = "auto" or "threads"') from error


def _decided(io: Io) -> tuple[str | None, int | None]:
    """Backend and depth, where the user has chosen them. Raises ConfigError for a backend that does not work here."""
    backend = None if io.backend == "auto" else io.backend
    depth = None if io.depth == "auto" else io.depth
    if backend is not None:
        open_reader(Reading(backend, UNMEASURED.size, 1)).close()
    return backend, depth


def _chosen(rates: Sequence[ReadRate], backend: str | None, depth: int | None, block: int) -> Reading:
    here = (backend,) if backend else (*backends.list_usable(), "buffered")
    return fixed(choose([rate for rate in rates if rate.backend in here], block=block), backend=backend, depth=depth)


def _measure(paths: Sequence[Path]) -> list[ReadRate]:
    """Rates of the drive that ``paths`` lie on, by every backend that works; none where reading fails."""
    longest = max(size for size, _ in BRIEF_CELLS)
    with ExitStack() as opened:
        try:
            direct = [opened.enter_context(DirectFile(path)) for path in paths]
            direct = [file for file in direct if file.length >= longest]
            if not direct:
                return []
            files = {"threads": direct}
            for backend in backends.list_usable(*direct)[1:]:
                again = [DirectFile(file.path, direct=backends.choose_direct(backend)) for file in direct]
                files[backend] = [opened.enter_context(file) for file in again]
            return read_rates(files, BRIEF_CELLS, BRIEF_SECONDS / len(BRIEF_CELLS) / len(files), rounds=2)
        except OSError:  # the reads of the model itself will say it, with the block's name
            return []
