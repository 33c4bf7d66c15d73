"""What finished runs teach about the next ones: corrections of a forecast, and the range that it lies in (pure)."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from ..units import MiB
from .trust import CONTRADICTED, LASTING

UNTAUGHT = 0.15
"""Share by which a forecast is off where no run has taught anything: docs/explanation/plan.md, how near it comes."""
TAUGHT = 0.05
"""The least share by which a forecast is off after runs of the same model."""
_BOUNDS = 1 / 8, 8.0
_ALIKE = 1.05
"""Budgets that differ by less than this factor are one: "auto" never gives the same."""
_READS = 1 * MiB
"""Bytes per token below which a run says nothing of the drive."""


class PerToken(NamedTuple):
    """What a token took, in a run or in a simulation: all its seconds, those of them that it waited for the drive,
    seconds in which the drive had reads in flight, and bytes of these."""

    seconds: float
    stalled: float
    read_seconds: float
    bytes_read: float

    @property
    def drive(self) -> float | None:
        """Bytes per second of the drive; None where too little was read to tell."""
        return self.bytes_read / self.read_seconds if self.bytes_read >= _READS and self.read_seconds > 0 else None


class Window(NamedTuple):
    """Successive tokens of a run: what each took on average, and whether other programs took cores meanwhile."""

    token: PerToken
    beside: bool


class Run(NamedTuple):
    """A finished run: ``when`` it ended, in seconds since 1970, its ``budget`` of host memory for weights, the typical
    token, the seconds of a token in its faster and slower parts, whether it was ``beside`` other programs, and whether
    it ended on the machine's ``battery``."""

    when: float
    budget: int
    token: PerToken
    fast: float
    slow: float
    beside: bool
    battery: bool = False


class Lesson(NamedTuple):
    """Factors of what a simulation takes: for the seconds of computing, for the speed of the drive, and, after these,
    for tokens per second."""

    compute: float = 1.0
    drive: float = 1.0
    rest: float = 1.0


class Span(NamedTuple):
    """The tokens per second that are expected, and the range that they lie in."""

    least: float
    expected: float
    most: float


def summarise(windows: Sequence[Window], when: float, budget: int, *, battery: bool = False) -> Run | None:
    """The run that had these ``windows``; None of fewer than two. What was beside other programs counts only where
    nothing else is there. The middle half of the windows is the typical token."""
    quiet = [window for window in windows if not window.beside]
    chosen = quiet if len(quiet) >= 2 else list(windows)
    if len(chosen) < 2:
        return None
    tokens = sorted(window.token for window in chosen)
    quarter = len(tokens) // 4
    middle = tokens[quarter : len(tokens) - quarter]
    typical = PerToken(*(statistics.fmean(column) for column in zip(*middle, strict=True)))
    fast, slow = tokens[quarter].seconds, tokens[-1 - quarter].seconds
    return Run(when, budget, typical, fast, slow, chosen is not quiet, battery)


def nearest(runs: Sequence[Run], budget: int, now: float, *, battery: bool = False) -> list[Run]:
    """Those of ``runs`` with about the budget that is nearest to ``budget``, that are not too old, and that had the
    same power, ``battery`` or not."""
    lasting = [run for run in runs if 0 <= now - run.when <= LASTING and run.battery == battery]
    if not lasting:
        return []
    best = min((run.budget for run in lasting), key=lambda each: (_apart(each, budget), each))
    return [run for run in lasting if _apart(run.budget, best) <= _ALIKE]


def typical_token(runs: Sequence[Run]) -> PerToken:
    """The median of each figure of ``runs``."""
    return PerToken(*(statistics.median(column) for column in zip(*(run.token for run in runs), strict=True)))


def learn(seen: PerToken, simulated: PerToken) -> Lesson:
    """The correction of a simulation by what was seen of the same model under the same budget."""
    computed, expected = seen.seconds - seen.stalled, simulated.seconds - simulated.stalled
    compute = _bounded(computed / expected) if min(computed, expected) > 0 else 1.0
    drive = _bounded(seen.drive / simulated.drive) if seen.drive and simulated.drive else 1.0
    return Lesson(compute, drive)


def refutes(seen: PerToken, simulated: PerToken) -> bool:
    """Whether a run computed faster than the rates behind a simulation allow, beyond doubt."""
    return 0 < (seen.seconds - seen.stalled) * CONTRADICTED < simulated.seconds - simulated.stalled


def refutes_drive(runs: Sequence[Run], best: float, since: float) -> bool:
    """Whether a run after ``since`` had more of the drive than ``best`` bytes per second, which are its kept rates."""
    found = [run.token.drive or 0.0 for run in runs if run.when > since]
    return max(found, default=0.0) > CONTRADICTED * best


def remaining(seen: PerToken, corrected: PerToken) -> float:
    """The factor for tokens per second that is left after a simulation was ``corrected``."""
    return _bounded(corrected.seconds / seen.seconds) if min(corrected.seconds, seen.seconds) > 0 else 1.0


def untaught(least: float, expected: float, most: float) -> Span:
    """The range of a forecast that rests on rates alone: ``least`` and ``most`` follow from their spread."""
    return Span(min(least, expected) * (1 - UNTAUGHT), expected, max(most, expected) * (1 + UNTAUGHT))


def taught(corrected: float, runs: Sequence[Run]) -> Span:
    """The range of a forecast that ``runs`` have ``corrected``, in tokens per second."""
    middle = statistics.median(run.token.seconds for run in runs)
    least = corrected * middle / max(run.slow for run in runs) * (1 - TAUGHT)
    most = corrected * middle / min(run.fast for run in runs) * (1 + TAUGHT)
    return Span(least, corrected, most)


def either(rates: Span, runs: Span) -> Span:
    """The range where ``rates`` or ``runs`` may hold, since the runs are older than the rates, or were beside other
    programs: all of both, and the middle between."""
    middle = (rates.expected * runs.expected) ** 0.5
    return Span(min(rates.least, runs.least), middle, max(rates.most, runs.most))


def slowest_seen(span: Span, beside: Sequence[Run], budget: int) -> Span:
    """``span``, down to what runs ``beside`` other programs have shown under about this ``budget``."""
    seen = [1 / run.slow for run in beside if _apart(run.budget, budget) <= _ALIKE]
    return span._replace(least=min([span.least, *seen]))


def beside_others(span: Span, left: float) -> Span:
    """``span`` where other programs leave the share ``left`` of the machine's speed now."""
    return span._replace(least=span.least * left)


def _apart(one: int, other: int) -> float:
    return max(one, other) / max(1, min(one, other))


def _bounded(factor: float) -> float:
    return min(_BOUNDS[1], max(_BOUNDS[0], factor))
