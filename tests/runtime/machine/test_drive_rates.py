"""Drives as they are simulated: from rates that are kept, or measured once."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from penstock.kernels.machine.read_rates import ReadRate
from penstock.runtime.config.settings import Io
from penstock.runtime.machine import drive_speeds, drives
from penstock.tiering.errors import ConfigError
from penstock.tiering.units import MiB
from tests.support.timings import measured

RATES = [ReadRate(MiB, depth, depth * 1e9) for depth in (1, 2, 4)]


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_drive_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(
        "penstock.kernels.machine.machine.measure_drive",
        lambda folder, **_: measured.append(folder) or SimpleNamespace(rates=RATES, best=RATES[-1]),
    )
    assert [drive_speeds.drive_rates(tmp_path / "not" / "there").rates for _ in range(2)] == [RATES, RATES]
    assert measured == [tmp_path]


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
