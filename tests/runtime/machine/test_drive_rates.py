"""Drives as they are simulated: from rates that are kept, or measured once."""

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.kernels.machine.read_rates import ReadRate
from penstock.runtime.config.settings import Io
from penstock.runtime.machine import drive_rates_file, drive_speeds, drives
from penstock.runtime.machine.drive_rates_file import DriveRates
from penstock.tiering.errors import ConfigError
from penstock.tiering.policy.trust import Doubt
from penstock.tiering.units import MiB
from tests.support.timings import MEASURED, measured

RATES = [ReadRate(MiB, depth, depth * 1e9) for depth in (1, 2, 4)]


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_drive_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "penstock.kernels.machine.machine.measure_drive",
        lambda folder, **_: seen.append(folder) or SimpleNamespace(rates=RATES, best=RATES[-1]),
    )
    assert [drive_speeds.drive_rates(tmp_path / "not" / "there").rates for _ in range(2)] == [RATES, RATES]
    assert seen == [tmp_path]


LATER = MEASURED.when + 3600


@pytest.mark.parametrize(
    ("speed", "doubts", "best", "left", "when"),
    [
        (4.2e9, (), 4e9, 1.0, MEASURED.when),  # as it was
        (2e9, (), 2e9, 1.0, LATER),
        (2e9, ("cores",), 4e9, 0.5, MEASURED.when),  # what others leave of it
        (8e9, ("drive",), 4e9, 1.0, MEASURED.when),
    ],
)
def test_stale_rates_are_looked_at_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    speed: float,
    doubts: tuple[Doubt, ...],
    best: float,
    left: float,
    when: float,
) -> None:
    drive_rates_file.keep(tmp_path, measured(RATES))
    looks = []

    def look(folder: Path, **how: object) -> SimpleNamespace:
        looks.append(how["sizes"])
        return SimpleNamespace(best=replace(RATES[-1], bytes_per_second=speed), rates=())

    monkeypatch.setattr("penstock.kernels.machine.machine.measure_drive", look)
    monkeypatch.setattr("penstock.runtime.machine.watch.doubts_of", lambda *_, **__: doubts)
    monkeypatch.setattr("time.time", lambda: LATER)
    found = drive_speeds.drive_rates(tmp_path)
    assert looks == [(MiB,)]
    assert max(rate.bytes_per_second for rate in found.rates) == pytest.approx(best)
    assert (found.left, found.measured.when) == (left, when)
    again = drive_speeds.drive_rates(tmp_path)
    assert len(looks) == (2 if doubts else 1), "what was seen beside others has to be looked at again"
    assert again.rates == found.rates


@pytest.mark.parametrize(
    ("kept", "refuted", "doubts"), [((), True, ()), ((), True, ("cores",)), (("cores",), False, ())]
)
def test_refuted_and_doubtful_rates_are_measured_anew(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: tuple[Doubt, ...],
    refuted: bool,
    doubts: tuple[Doubt, ...],
) -> None:
    slow = [replace(rate, bytes_per_second=1e6) for rate in RATES]
    drive_rates_file.keep(tmp_path, DriveRates(slow, replace(MEASURED, doubts=kept)))
    monkeypatch.setattr(
        "penstock.kernels.machine.machine.measure_drive", lambda *_, **__: SimpleNamespace(rates=RATES, best=RATES[-1])
    )
    monkeypatch.setattr("penstock.runtime.machine.watch.doubts_of", lambda *_, **__: doubts)
    assert drive_speeds.drive_rates(tmp_path, refuted=refuted).rates == RATES == drive_rates_file.rates(tmp_path)


@pytest.mark.parametrize("change", [{"backend": "nothing"}, {"size": 1 << 40}, {"depth": 1 << 16}])
def test_rates_that_this_machine_cannot_read_at_are_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    drive_rates_file.keep(tmp_path, measured([replace(RATES[0], **change)]))
    monkeypatch.setattr(
        "penstock.kernels.machine.machine.measure_drive", lambda *_, **__: SimpleNamespace(rates=RATES, best=RATES[-1])
    )
    monkeypatch.setattr("penstock.runtime.machine.watch.doubts_of", lambda *_, **__: ())
    assert drive_speeds.drive_rates(tmp_path).rates == RATES


def test_doubtful_rates_do_not_replace_better_ones(tmp_path: Path) -> None:
    good, doubtful = measured(RATES), DriveRates(RATES[:1], replace(MEASURED, doubts=("cores",)))
    drive_rates_file.keep(tmp_path, doubtful)
    assert drive_rates_file.load(tmp_path) == doubtful, "better than nothing"
    drive_rates_file.keep(tmp_path, good)
    drive_rates_file.keep(tmp_path, doubtful)
    assert drive_rates_file.load(tmp_path) == good


def test_a_drive_that_cannot_be_measured_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr("penstock.kernels.machine.machine.measure_drive", full)
    with pytest.raises(ConfigError, match="choose another with --store"):
        drive_speeds.drive_rates(tmp_path)


def test_a_modelled_drive_is_as_fast_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by another backend, nor with more reads in flight."""
    rates = [*RATES, ReadRate(MiB, 8, 9e9), ReadRate(MiB, 2, 7e9, "io_uring")]
    monkeypatch.setattr(drives, "drive_rates", lambda *_, **__: measured(rates))
    (drive,), reading, _ = drives.modelled([tmp_path], Io(backend="threads", depth=2), block=MiB)
    assert (reading.backend, reading.depth) == ("threads", 2)
    assert drive.bandwidth == 2e9
    assert drive.delivered(MiB, 1) == pytest.approx(1e9)
    assert drive.delivered(MiB, 4) == 2e9


def test_places_on_one_drive_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drives, "drive_rates", lambda *_, **__: measured(RATES))
    monkeypatch.setattr(drives, "drive_under", lambda folder: "other" if folder.name == "b" else "one")
    places = [tmp_path / name for name in "abc"]
    for place in places:
        place.mkdir()
    found, _, _ = drives.modelled(places, Io(), block=MiB)
    assert [drive.bandwidth for drive in found] == [2e9, 4e9, 2e9]
