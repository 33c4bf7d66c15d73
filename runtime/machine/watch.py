"""Watches what other programs do beside a measurement."""

import time
from pathlib import Path

from ...kernels.machine.core_use import read_core_use
from ...kernels.machine.drive_use import read_drive_use
from ...kernels.machine.machine import count_usable_cores
from ...kernels.machine.power import is_on_battery
from ...tiering.policy.measured import Measured
from ...tiering.policy.trust import Cores, DriveBytes, beside, doubts_of


class Watch:
    """A look at the machine before a measurement. ``done`` compares it with one after it."""

    def __init__(self, folder: Path | None) -> None:
        """``folder`` is on the drive that is measured or used, if one is."""
        self._folder = folder
        self._cores, self._drive = _cores(), _drive(folder)

    def done(self, spread: float = 0.0, *, drive: bool = False) -> Measured:
        """The circumstances of a measurement that ends now, whose repeats lie ``spread`` apart; ``drive``: it is one of
        the drive."""
        found = beside(self._cores, _cores(), self._drive, _drive(self._folder))
        now = time.time()
        return Measured(
            when=now,
            seen=now,
            spread=min(0.99, spread),
            doubts=doubts_of(found, spread, count_usable_cores(), drive=drive),
            others=found.others,
            waited=min(0.99, found.waited),
            battery=is_on_battery(),
        )


def _cores() -> Cores | None:
    found = read_core_use()
    return None if found is None else Cores(found.now, found.threads, found.others)


def _drive(folder: Path | None) -> DriveBytes | None:
    found = None if folder is None else read_drive_use(folder)
    return None if found is None else DriveBytes(*found)
