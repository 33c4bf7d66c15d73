"""The battery of this machine, as the system tells of it."""

from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from penstock.kernels.machine.power import is_on_battery


@pytest.mark.parametrize(
    ("plugged", "expected"), [(False, True), (True, False), (None, False)], ids=["battery", "mains", "unknown"]
)
def test_a_battery(monkeypatch: pytest.MonkeyPatch, plugged: bool | None, expected: bool) -> None:
    found = SimpleNamespace(percent=50.0, secsleft=3600, power_plugged=plugged)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: found, raising=False)
    assert is_on_battery() == expected


def fail(error: Exception) -> Any:
    raise error


def test_none_and_none_that_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    assert not is_on_battery()
    monkeypatch.setattr(psutil, "sensors_battery", lambda: fail(OSError("no such device")), raising=False)
    assert not is_on_battery()
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert not is_on_battery()
