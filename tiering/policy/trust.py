"""Whether what was measured of the machine can be trusted, and for how long (pure)."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from .core_contention import share_waited

Doubt = Literal["cores", "drive", "spread"]
"""Why a measurement says little: other programs took cores, or used the drive, or its repeats differ."""

FRESH = 1800.0
"""Seconds for which rates count without another look. Within an hour, heat, batteries and neighbours on the same host
have changed rates 1.2 to 1.5 times."""
FRESH_IN_DOUBT = 600.0
"""The same where there is doubt: the other programs may have ended."""
LASTING = 7 * 86400.0
"""Seconds after which even a measurement in doubt says more than an old one without."""
MOVED = 0.1
"""Share by which a brief look must differ from the kept rate before it changes it: repeats differ by as much."""
CONTRADICTED = 1.25
"""A run that was this many times faster than kept rates allow has refuted them."""

_OTHERS, _OTHERS_SHARE = 0.25, 0.1
"""Cores, and share of all cores, that others may use beside a measurement."""
_WAITED = 0.05
"""Share of the time that threads that compute may wait for a core beside others."""
_FOREIGN = 0.1
"""Share of the bytes that a drive moves that may be of others."""
_SPREAD = 0.5
"""Spread of repeats from which on one cannot tell which of them holds."""
_BOUNDS = 1 / 16, 16.0


class Beside(NamedTuple):
    """What went on beside a measurement: cores that others used, the share of their time that its threads waited for a
    core, and the share of the drive's bytes that were of others. 0 where the system does not tell."""

    others: float = 0.0
    waited: float = 0.0
    foreign: float = 0.0


class Cores(NamedTuple):
    """Counts of cores at a time, as kernels/machine/core_use.py reads them."""

    now: float
    threads: Mapping[int, tuple[float, float]]
    others: float


class DriveBytes(NamedTuple):
    """Bytes that a drive has moved until a time, and those that this process has, on any drive."""

    everyone: int
    own: int


def beside(
    before: Cores | None, after: Cores | None, drive_before: DriveBytes | None, drive_after: DriveBytes | None
) -> Beside:
    """What went on between two looks at the counts; None for counts that the system does not tell."""
    others = waited = foreign = 0.0
    if before is not None and after is not None and after.now > before.now:
        seconds = after.now - before.now
        others = max(0.0, (after.others - before.others) / seconds)
        waited = share_waited(before.threads, after.threads, seconds) or 0.0
    if drive_before is not None and drive_after is not None:
        moved = drive_after.everyone - drive_before.everyone
        foreign = max(0.0, 1 - (drive_after.own - drive_before.own) / moved) if moved > 0 else 0.0
    return Beside(others, waited, foreign)


def doubts_of(found: Beside, spread: float, cores: int, *, drive: bool) -> tuple[Doubt, ...]:
    """The reasons to doubt a measurement with ``spread`` on ``cores`` cores; ``drive``: it is of a drive."""
    reasons: list[Doubt] = []
    many = max(_OTHERS, _OTHERS_SHARE * cores)
    if found.others >= many or (found.others >= _OTHERS / 2 and found.waited >= _WAITED):
        reasons.append("cores")
    if drive and found.foreign >= _FOREIGN:
        reasons.append("drive")
    if spread >= _SPREAD:
        reasons.append("spread")
    return tuple(reasons)


def spread_of(repeats: Sequence[float]) -> float:
    """How far repeats of a measurement lie apart: half of the distance between their quartiles, as a share of the
    median. 0 of a single one."""
    if len(repeats) < 2:
        return 0.0
    first, middle, third = statistics.quantiles(repeats, n=4, method="inclusive")
    return min(0.99, (third - first) / 2 / middle) if middle > 0 else 0.0


def is_stale(when: float, now: float, *, doubtful: bool) -> bool:
    """Whether what was measured at ``when`` has to be looked at again ``now``, in seconds. A clock that was set back
    makes it so, too."""
    return not 0 <= now - when <= (FRESH_IN_DOUBT if doubtful else FRESH)


def replaces(doubtful: bool, kept_doubtful: bool, kept_age: float) -> bool:
    """Whether a new measurement is kept in place of one that is ``kept_age`` seconds old."""
    return not doubtful or kept_doubtful or not 0 <= kept_age <= LASTING


def moved(ratio: float) -> float:
    """The factor by which to change kept rates after a brief look that found ``ratio`` times as much: 1.0 where that is
    within what repeats differ by."""
    if 1 / (1 + MOVED) <= ratio <= 1 + MOVED:
        return 1.0
    return min(_BOUNDS[1], max(_BOUNDS[0], ratio))
