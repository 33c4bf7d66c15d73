"""When and how well something of this machine was measured, and what other programs did meanwhile."""

import time
from pathlib import Path

from pydantic import Field

from ...kernels.machine.core_use import read_core_use
from ...kernels.machine.drive_use import read_drive_use
from ...kernels.machine.machine import count_usable_cores
from ...tiering.policy.trust import Beside, Cores, Doubt, DriveBytes, beside, doubts_of, is_stale, replaces
from . import cachefile

_Share = Field(ge=0, lt=1, allow_inf_nan=False)


class Measured(cachefile.Strict):
    """``when`` it was measured (seconds since 1970) and looked at last (``seen``), how far its repeats lie apart, as a
    share, and the reasons to doubt it. ``others`` cores were used by other programs, and threads waited for a core for
    the share ``waited`` of their time."""

    when: float = Field(ge=0, le=1e11, allow_inf_nan=False)
    seen: float = Field(ge=0, le=1e11, allow_inf_nan=False)
    spread: float = _Share
    doubts: tuple[Doubt, ...] = Field(max_length=3)
    others: float = Field(ge=0, le=1e6, allow_inf_nan=False)
    waited: float = Field(ge=0, le=0.99, allow_inf_nan=False)

    @property
    def doubtful(self) -> bool:
        """Whether there is a reason to doubt it."""
        return bool(self.doubts)

    def stale(self) -> bool:
        """Whether it has to be looked at again."""
        return is_stale(self.seen, time.time(), doubtful=self.doubtful)

    def replaces(self, kept: "Measured | None") -> bool:
        """Whether this is to be kept in place of ``kept``."""
        return kept is None or replaces(self.doubtful, kept.doubtful, time.time() - kept.when)

    def seen_now(self) -> "Measured":
        """The same, looked at now."""
        return self.model_copy(update={"seen": time.time()})

    def in_words(self) -> str:
        """How old and how sure it is, for people."""
        age = in_words_ago(time.time() - self.when)
        said = f"measured {age}, repeats within {self.spread:.0%}"
        return f"{said}; doubtful: {doubts_in_words(self.doubts, self.others)}" if self.doubts else said


class Watch:
    """What goes on beside a measurement. ``done`` says it at its end."""

    def __init__(self, folder: Path | None) -> None:
        """``folder`` is on the drive that is measured or used, if one is."""
        self._folder = folder
        self._cores, self._drive = _cores(), _drive(folder)
        self.beside = Beside()

    def done(self, spread: float = 0.0, *, drive: bool = False) -> Measured:
        """The circumstances of a measurement that ends now, whose repeats lie ``spread`` apart; ``drive``: it is one of
        the drive."""
        found = self.beside = beside(self._cores, _cores(), self._drive, _drive(self._folder))
        now = time.time()
        return Measured(
            when=now,
            seen=now,
            spread=min(0.99, spread),
            doubts=doubts_of(found, spread, count_usable_cores(), drive=drive),
            others=found.others,
            waited=min(0.99, found.waited),
        )


def doubts_in_words(doubts: tuple[Doubt, ...], others: float) -> str:
    """Reasons for doubt, for people."""
    words = {
        "cores": f"other programs used {others:.1f} cores",
        "drive": "other programs used the drive",
        "spread": "its repeats differ",
    }
    return ", ".join(words[doubt] for doubt in doubts)


def in_words_ago(seconds: float) -> str:
    """A time ago, for people."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name} ago"
    return "just now" if 0 <= seconds < 120 else "at a time to come"


def _cores() -> Cores | None:
    found = read_core_use()
    return None if found is None else Cores(found.now, found.threads, found.others)


def _drive(folder: Path | None) -> DriveBytes | None:
    found = None if folder is None else read_drive_use(folder)
    return None if found is None else DriveBytes(*found)
