"""``penstock doctor``: what this machine can do, measured, and what stands in the way."""

import os
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...tiering.driving.small_files import in_words
from ...tiering.errors import ConfigError
from ...tiering.policy.drive_reading import Reading
from ...tiering.units import GiB, MiB, format_size
from ..machine.drive_speeds import existing
from .console import importing, print_json, say
from .options import Settings
from .tables import print_table

if TYPE_CHECKING:
    from ...kernels.devices.measure import DeviceReport
    from ...kernels.machine.machine import DriveReport, MachineReport
    from ...kernels.native import Kernels
    from ...tiering.policy.measured import Measured
    from ..machine.drive_rates_file import DriveRates
    from ..machine.kernel_speeds import KernelSpeed
    from ..machine.timings import KeptTimings, Timings

IN_MEMORY = ("tmpfs", "ramfs")
OVER_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "glusterfs", "lustre", "afs")
LITTLE = 4 * GiB
TYPICAL = 4 * MiB
"""Bytes of the blocks for which it says how they would be read; each model's own decide when it is loaded."""


def command(settings: Settings) -> None:
    """Measure the drive of the store, the memory and computing, and warn of what will make models slow. Takes some
    seconds.

    What is measured is kept: of the drive it decides how models are read from then on, and of both what plan predicts.
    """
    config = settings.load()
    with importing():
        import psutil

        from ...kernels import native
        from ...kernels.devices.measure import report_cuda_devices
        from ...kernels.machine import machine
        from ..machine import drive_rates_file, kernel_speeds, timings
        from ..machine.reading import kept_reading
        from ..planning.reference import measure

    store = config.store.path
    folder = existing(store)  # before the first pack there is no store yet
    drive, rates, free = _measure_drive(folder)
    kept = drive_rates_file.keep(folder, rates)
    computing = measure(folder, config.compute.threads)
    timings.keep(computing, config.compute.threads)
    memory, memory_measured = _measure_memory()
    report = machine.describe()
    file_system = file_system_of(folder, Path("/proc/self/mounts"))
    kernels = native.describe()
    found = _Found(
        machine=report,
        kernels=kernels,
        speeds=kernel_speeds.measure(),
        drive=drive,
        file_system=file_system,
        free=free,
        reading=kept_reading(folder, config.io, block=TYPICAL) if kept else None,
        kept=kept,
        memory=memory,
        measured={"drive": rates.measured, "computing": computing.measured, "memory": memory_measured},
        computing=computing.timings,
        budget=config.host_budget(),
        devices=report_cuda_devices(),
        warnings=warnings_for(
            swap_used=psutil.swap_memory().used,
            available=report.available_memory,
            file_system=file_system,
            direct=drive.direct,
            free=free,
            kept=kept is not None,
            kernels=kernels.missing,
            doubted=_better_kept(
                ("the drive", rates, drive_rates_file.load(folder)),
                ("computing", computing, timings.load(config.compute.threads)),
            ),
            doubtful=rates.measured.doubtful or computing.measured.doubtful,
        ),
    )
    if settings.json:
        print_json(_fields(found))
    else:
        _print(found, store)


def _measure_memory() -> "tuple[float, Measured]":
    """Bytes per second that all threads read from memory, and how they were measured."""
    from ...kernels.machine import machine
    from ..machine.watch import Watch

    watch = Watch(None)
    passes = machine.measure_memory()
    return max(passes), watch.done(1 - statistics.median(passes) / max(passes))


def _measure_drive(folder: Path) -> "tuple[DriveReport, DriveRates, int]":
    """The drive of ``folder``, its rates to be kept, and the bytes that are free on it. Raises ConfigError."""
    from ...kernels.machine import machine
    from ..machine.drive_rates_file import DriveRates, spread_of_rates
    from ..machine.watch import Watch

    try:
        watch = Watch(folder)
        drive = machine.measure_drive(folder)
        rates = DriveRates(list(drive.rates), watch.done(spread_of_rates(drive.rates), drive=True))
        return drive, rates, shutil.disk_usage(folder).free
    except OSError as error:
        raise ConfigError(
            f"cannot measure the drive below {folder}: {in_words(error)}; or choose another with --store"
        ) from error


def _better_kept(*parts: "tuple[str, DriveRates | KeptTimings, DriveRates | KeptTimings | None]") -> list[str]:
    """Names of the ``parts`` (name, as measured now, as kept) of which better rates are kept than these."""
    return [name for name, new, kept in parts if kept is not None and kept.measured != new.measured]


@dataclass(frozen=True, slots=True)
class _Found:
    """``free`` bytes on the drive, ``memory`` in bytes per second, ``budget`` in bytes; ``kept`` is the file in which
    the drive's rates are, and ``reading`` how blocks are read by them; ``measured`` says how well each was measured."""

    machine: "MachineReport"
    kernels: "Kernels"
    speeds: "list[KernelSpeed]"
    drive: "DriveReport"
    file_system: str
    free: int
    reading: Reading | None
    kept: Path | None
    memory: float
    measured: "dict[str, Measured]"
    computing: "Timings"
    budget: int
    devices: list["DeviceReport"]
    warnings: list[str]


def _fields(found: _Found) -> dict[str, Any]:
    """The fields of ``--json``."""
    return {
        "machine": asdict(found.machine),
        "kernels": asdict(found.kernels),
        "kernel_speeds": [speed._asdict() for speed in found.speeds],
        "drive": asdict(found.drive) | {"file_system": found.file_system, "free_bytes": found.free},
        "reading": asdict(found.reading) if found.reading else None,
        "kept_in": str(found.kept) if found.kept else None,
        "memory_bytes_per_second": found.memory,
        "computing": found.computing.model_dump(),
        "measured": {name: each.to_dict() for name, each in found.measured.items()},
        "host_memory": found.budget,
        "devices": [asdict(device) for device in found.devices],
        "warnings": found.warnings,
    }


def _print(found: _Found, store: Path) -> None:
    report, drive, reading = found.machine, found.drive, found.reading
    print(f"{report.processor}, {report.cores} cores, {' '.join(report.instruction_sets)}")
    print(f"{report.system}; Python {report.python}, torch {report.torch}, transformers {report.transformers}")
    print(f"kernels: {kernels_in_use(found.kernels)}; GB/s of weights in products of a row, when packed, of pages:")
    rows = [[speed.kind, speed.level, f"{speed.bytes_per_second / 1e9:.2f}"] for speed in found.speeds]
    print_table("", ["kernel", "level", "GB/s"], rows)
    print(
        f"memory: {format_size(report.available_memory)} of {format_size(report.total_memory)} available, "
        f"{found.memory / 1e9:.1f} GB/s; host_memory would be {format_size(found.budget)}"
    )
    now = time.time()
    for name, measured in found.measured.items():
        print(f"{name}: {measured.in_words(now)}")
    print(
        f"computing a token of a bfloat16 model: weights at {found.computing.memory / 1e9:.1f} GB/s, besides "
        f"{found.computing.dense_layer * 1e3:.2f} ms for each layer, {found.computing.layer_warm * 1e3:.2f} to "
        f"{found.computing.layer_cold * 1e3:.2f} ms if it has experts"
    )
    for name, lost, found_there in (
        ("dense layers", found.computing.dense_contention, found.computing.dense_delivery),
        ("experts", found.computing.contention, found.computing.delivery),
    ):
        print(
            f"{name} beside the drive: computing loses {lost:.0%} of its speed; the drive delivers "
            f"{found_there.share:.0%} of its own, while cores compute {found_there.contention:.0%} less"
        )
    print(
        f"store: {store} on {found.file_system}, {format_size(found.free)} free, "
        f"direct reads: {'yes' if drive.direct else 'no'}; GB/s by backend, read size and reads in flight:"
    )
    depths = sorted({rate.depth for rate in drive.rates})
    for backend in dict.fromkeys(rate.backend for rate in drive.rates):
        own = [rate for rate in drive.rates if rate.backend == backend]
        speed = {(rate.size, rate.depth): f"{rate.bytes_per_second / 1e9:.2f}" for rate in own}
        rows = [
            [format_size(size), *(speed.get((size, depth), "") for depth in depths)]
            for size in sorted({rate.size for rate in own})
        ]
        print_table(backend, ["read size", *(f"{depth} in flight" for depth in depths)], rows)
    if reading:
        print(
            f"blocks of {format_size(TYPICAL)} are read by {reading.backend}, {reading.depth} reads in flight, "
            f"smaller neighbours joined up to {format_size(reading.size)}; kept in {found.kept}"
        )
    for device in found.devices:
        print(
            f"{device.name}: {device.model}, {format_size(device.free)} of {format_size(device.total)} free, "
            f"{device.bus / 1e9:.1f} GB/s from {'page-locked' if device.page_locked else 'pageable'} memory, "
            f"drives reach into its memory: {'yes' if device.direct else 'no'}"
        )
    for note in found.warnings:
        say(f"penstock: warning: {note}")


def kernels_in_use(found: "Kernels") -> str:
    """Which compiled kernels compute here, in words. Pure."""
    if not found.compiler:
        return "none, torch computes everything"
    threads = "on all threads" if found.openmp else "on one thread"
    return f"{found.level}, {threads}, compiled by {found.compiler}"


def warnings_for(
    *,
    swap_used: int,
    available: int,
    file_system: str,
    direct: bool,
    free: int,
    kept: bool,
    kernels: Sequence[str],
    doubted: Sequence[str] = (),
    doubtful: bool = False,
) -> list[str]:
    """What makes models slow or the machine stall here. Sizes in bytes. Pure.

    ``kernels`` says why compiled kernels are not in use. ``doubtful``: other programs took cores or the drive while
    this was measured; of what is ``doubted``, better rates are kept.
    """
    notes = list(kernels)
    if doubtful:
        kept_ones = f"; the earlier rates of {' and '.join(doubted)} stay" if doubted else ""
        notes.append(f"other programs disturbed this measurement{kept_ones}: run it again when they have ended")
    if file_system in IN_MEMORY:
        notes.append(f"the store is on {file_system}, which is memory: choose a folder on a drive with --store")
    if file_system in OVER_NETWORK:
        notes.append(
            f"the store is on {file_system}, a network file system: choose a folder on a local drive with --store"
        )
    if not direct:
        notes.append("no direct reads on the store's file system: blocks pass through the page cache, which is slower")
    if not kept:
        notes.append(
            "what was measured of the drive cannot be kept, so it is measured again whenever a model is loaded: "
            "make ~/.cache (or XDG_CACHE_HOME) writable"
        )
    if swap_used > 64 << 20:
        notes.append(
            f"{format_size(swap_used)} of swap are in use: leave more memory free, swapping undoes all streaming"
        )
    if available < LITTLE:
        notes.append(f"only {format_size(available)} of memory are available: close other programs")
    if free < LITTLE:
        notes.append(
            f"only {format_size(free)} are free on the store's drive: a packed model is as large as its checkpoint"
        )
    return notes


def file_system_of(folder: Path, mounts: Path) -> str:
    """The type of the file system below ``folder`` ("ext4", "tmpfs", ...) by the list in ``mounts``; else "unknown"."""
    folder = Path(os.path.realpath(folder))
    best, kind = -1, "unknown"
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return kind
    for line in lines:
        _, where, this, *_ = line.split(" ")
        point = Path(where.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        # The last of several mounts on one point is the one that is seen.
        if folder.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), this
    return kind
