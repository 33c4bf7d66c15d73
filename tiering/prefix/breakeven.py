"""Decides whether a stored prefix is read or computed again, by measured times (pure)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

MARGIN = 1.2
"""The other way is taken when it is faster by this factor: measurements scatter, decisions should not."""

_KEPT = 8
_WEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class Speeds:
    """Measurements of one model on this machine.

    ``read`` is bytes per second from the drive into the cache, checked. ``prompts`` are (tokens computed, seconds) of
    the latest prompts. ``reading`` is the last decision.
    """

    read: float | None = None
    prompts: tuple[tuple[int, float], ...] = ()
    reading: bool | None = None

    def after_read(self, bytes_: int, seconds: float) -> "Speeds":
        """These speeds with one more read."""
        rate = bytes_ / max(seconds, 1e-9)
        return replace(self, read=rate if self.read is None else self.read + _WEIGHT * (rate - self.read))

    def after_prompt(self, tokens: int, seconds: float) -> "Speeds":
        """These speeds with one more prompt."""
        return replace(self, prompts=(*self.prompts, (tokens, seconds))[-_KEPT:])

    def seconds_to_read(self, bytes_: int) -> float | None:
        """Seconds to read ``bytes_`` bytes; None without measurements."""
        return None if self.read is None else bytes_ / self.read

    def seconds_to_compute(self, tokens: int) -> float | None:
        """Seconds that a prompt takes for ``tokens`` more tokens; None without measurements.

        A streamed model reads its weights for each prompt, short or long. So the slope over several lengths counts
        (least squares), but no more than the mean.
        """
        if not self.prompts:
            return None
        count = len(self.prompts)
        mean_tokens = sum(n for n, _ in self.prompts) / count
        mean_seconds = sum(s for _, s in self.prompts) / count
        slope = mean_seconds / mean_tokens
        spread = sum((n - mean_tokens) ** 2 for n, _ in self.prompts)
        if spread > (0.25 * mean_tokens) ** 2:
            fitted = sum((n - mean_tokens) * (s - mean_seconds) for n, s in self.prompts) / spread
            slope = min(max(fitted, 0.0), slope)
        return slope * tokens


def worth_reading(speeds: Speeds, *, bytes_: int, tokens: int, saved: bool) -> bool:
    """Whether to read ``bytes_`` bytes instead of computing ``tokens`` tokens.

    Without enough measurements, prefixes ``saved`` by the user are read.
    """
    reading, computing = speeds.seconds_to_read(bytes_), speeds.seconds_to_compute(tokens)
    if reading is None or computing is None:
        return saved
    bias = {None: 1.0, True: MARGIN, False: 1 / MARGIN}[speeds.reading]
    return reading < computing * bias


def dump(speeds: Mapping[str, Speeds]) -> dict[str, Any]:
    """``speeds`` as values for JSON."""
    return {key: {"read": s.read, "prompts": s.prompts, "reading": s.reading} for key, s in speeds.items()}


def parse(raw: Mapping[str, Any]) -> dict[str, Speeds]:
    """The inverse of ``dump``. Raises ValueError, TypeError, KeyError or AttributeError for anything else."""
    return {str(key): _parse(value) for key, value in raw.items()}


def _parse(raw: Mapping[str, Any]) -> Speeds:
    read = None if raw["read"] is None else float(raw["read"])
    prompts: Sequence[Any] = raw["prompts"]
    speeds = Speeds(read, tuple((int(n), float(s)) for n, s in prompts)[-_KEPT:], raw["reading"])
    if (read is not None and not 0 < read < float("inf")) or speeds.reading not in (None, True, False):
        raise ValueError("no speed")
    if not all(n > 0 and 0 <= s < float("inf") for n, s in speeds.prompts):
        raise ValueError("no time")
    return speeds
