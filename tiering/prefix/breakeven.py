"""Whether a stored prefix is read or computed again (pure): whichever takes less time, as measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

MARGIN = 1.2
"""How much faster the other way has to be before it is taken instead: measurements scatter, decisions should not."""

_KEPT = 8
_WEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class Speeds:
    """What is measured of one model on this machine: ``read`` is bytes per second, from the drive into the cache,
    checked; ``prompts`` are (tokens computed, seconds) of the latest prompts; ``reading``, what was decided last."""

    read: float | None = None
    prompts: tuple[tuple[int, float], ...] = ()
    reading: bool | None = None

    def after_read(self, bytes_: int, seconds: float) -> "Speeds":
        """With one more read taken into account."""
        rate = bytes_ / max(seconds, 1e-9)
        return replace(self, read=rate if self.read is None else self.read + _WEIGHT * (rate - self.read))

    def after_prompt(self, tokens: int, seconds: float) -> "Speeds":
        """With one more prompt taken into account."""
        return replace(self, prompts=(*self.prompts, (tokens, seconds))[-_KEPT:])

    def seconds_to_read(self, bytes_: int) -> float | None:
        """How long ``bytes_`` take; None when nothing is known."""
        return None if self.read is None else bytes_ / self.read

    def seconds_to_compute(self, tokens: int) -> float | None:
        """How much longer a prompt takes for ``tokens`` more of them; None when nothing is known.

        A streamed model reads its weights for each prompt, short or long. So where prompts of several lengths were
        measured it is the slope that counts (least squares), not more than the mean.
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
    """Whether ``bytes_`` are read for ``tokens`` not to be computed. Where too little is measured, what somebody
    ``saved`` on purpose is."""
    reading, computing = speeds.seconds_to_read(bytes_), speeds.seconds_to_compute(tokens)
    if reading is None or computing is None:
        return saved
    bias = {None: 1.0, True: MARGIN, False: 1 / MARGIN}[speeds.reading]
    return reading < computing * bias


def dump(speeds: Mapping[str, Speeds]) -> dict[str, Any]:
    """For JSON."""
    return {key: {"read": s.read, "prompts": s.prompts, "reading": s.reading} for key, s in speeds.items()}


def parse(raw: Mapping[str, Any]) -> dict[str, Speeds]:
    """What ``dump`` made. Raises ValueError, TypeError, KeyError or AttributeError when it is something else."""
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
