"""The drives of a bundle, measured: the ones that take part, and their speed together."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...tiering.policy.drive_reading import UNMEASURED, Reading, typical_read
from ...tiering.sim.devices import Drive as ModelledDrive
from ...tiering.sim.devices import fitted
from ...tiering.store.bundle import journal
from ...tiering.store.bundle.folder import PARTIAL
from ...tiering.store.bundle.manifest import BundleDrive, Manifest
from ...tiering.store.bundle.stripes import absent, drive_under, part_of, remove
from ...tiering.units import PAGE
from ..config.settings import Io
from .drive_speeds import drive_rates, drive_speed, existing

if TYPE_CHECKING:
    from .drive_rates_file import DriveRates

_SECONDS = 0.25


def drives_for(
    target: Path, stripes: Sequence[Path], lengths: Sequence[int], *, memory: int
) -> tuple[BundleDrive, ...]:
    """The drives for the bundle ``target``, whose blocks have ``lengths`` bytes: that of its store and those of
    ``stripes``, measured with reads of such blocks in at most ``memory`` bytes. None if there are no stripes.

    Packing that began with the same folders goes on with the speeds of then. If it began with others, it is given up
    and removed. The caller holds the bundle's lock. Raises ConfigError when a drive cannot be measured.
    """
    partial = target.with_name(target.name + PARTIAL)
    folders = ["", *(str(part_of(target, stripe)) for stripe in stripes)] if stripes else []
    begun = journal.read_drives(partial)
    if [drive.folder for drive in begun] == folders:
        return begun
    journal.end(partial)
    remove(target, [drive.folder for drive in begun if drive.folder not in ("", *folders)])
    size = max(PAGE, min(typical_read(lengths), memory // UNMEASURED.depth // PAGE * PAGE))
    places = [target.parent, *stripes] if stripes else []
    return tuple(
        BundleDrive(folder, max(1, round(drive_speed(place, size, UNMEASURED, seconds=_SECONDS))))
        for folder, place in zip(folders, places, strict=True)
    )


def places_of(bundle: Path, manifest: Manifest) -> list[Path]:
    """The folder of each drive of ``bundle``. Raises BundleError when a folder with blocks is missing."""
    places = manifest.places(bundle)
    for place, share in zip(places, manifest.drive_bytes, strict=True):
        if share and not place.is_dir():
            raise absent(bundle, place)
    return places


def bundle_speed(bundle: Path, manifest: Manifest, size: int, reading: Reading) -> float:
    """Bytes per second of the drives of ``bundle``, while each delivers its share, in reads of ``size`` bytes as
    ``reading`` says. Raises BundleError when a drive is missing, ConfigError when one fails."""
    places = places_of(bundle, manifest)
    return combined_speed(places, [drive_speed(place, size, reading) for place in places], manifest.drive_bytes)


class ModelledDrives(NamedTuple):
    """Models of drives while no core computes, how a bundle is read from them, and the measurements behind them."""

    models: list[ModelledDrive]
    reading: Reading
    measured: "list[DriveRates]"


def modelled(places: Sequence[Path], io: Io, *, block: int, refuted: bool = False) -> ModelledDrives:
    """Models of the drives that ``places`` are on, by rates that are kept or measured now (anew where a run has
    ``refuted`` them), and how a bundle with blocks of about ``block`` bytes is read. Places on one drive share it
    evenly.

    Raises ConfigError when a drive cannot be measured, or not be read as ``io`` wants it.
    """
    from .reading import kept_reading

    by_name: dict[str, DriveRates] = {}
    names = [drive_under(existing(place)) for place in places]
    for place, name in zip(places, names, strict=True):
        if name not in by_name:
            by_name[name] = drive_rates(place, refuted=refuted)
    measured = [by_name[name] for name in names]
    reading = kept_reading(existing(places[0]), io, block=block)
    found = []
    for (rates, _, _), name in zip(measured, names, strict=True):
        own = [rate for rate in rates if rate.backend == reading.backend] or rates
        near = [rate for rate in own if rate.depth <= reading.depth] or own
        drive = fitted(near)
        found.append(replace(drive, bandwidth=drive.bandwidth / names.count(name)))
    return ModelledDrives(found, reading, measured)


def combined_speed(places: Sequence[Path], speeds: Sequence[float], shares: Sequence[float]) -> float:
    """Bytes per second of ``places``, read at the same time, each with its speed and its share of the bytes. The drive
    that takes longest decides. Places on one drive share its speed."""
    if len(places) == 1:
        return speeds[0]
    times: dict[str, float] = {}
    for place, speed, share in zip(places, speeds, shares, strict=True):
        drive = drive_under(existing(place))
        times[drive] = times.get(drive, 0.0) + share / speed
    return sum(shares) / max(times.values())
