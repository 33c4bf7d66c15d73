"""Decides whether a stored prefix is read or computed again, by measured times (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..driving.strict_json import Fields, items, number, text, whole

MARGIN = 1.2
"""The other way is taken when it is faster by this factor: measurements scatter, decisions should not."""

_KEPT = 8
_ROOT = "[0-9a-z]{1,64}"
_MOST_TOKENS = 1 << 40
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
    return {
        key: {"read": s.read, "prompts": [list(prompt) for prompt in s.prompts], "reading": s.reading}
        for key, s in speeds.items()
    }


def parse(raw: object) -> dict[str, Speeds]:
    """The inverse of ``dump``, after JSON. Raises ValueError for anything else."""
    if not isinstance(raw, dict):
        raise ValueError("no speeds")
    return {text(key, _ROOT): _parse(value) for key, value in raw.items()}


def _parse(raw: object) -> Speeds:
    fields = Fields(raw)
    read, reading = fields.take("read"), fields.take("reading")
    prompts = fields.many("prompts", _parse_prompt)[-_KEPT:]
    fields.end()
    if read is not None and not number(read) > 0:
        raise ValueError("no speed")
    if reading is not None and not isinstance(reading, bool):
        raise ValueError("no decision")
    return Speeds(None if read is None else number(read), prompts, reading)


def _parse_prompt(raw: object) -> tuple[int, float]:
    tokens, seconds = items(raw, 2)
    if number(seconds) < 0:
        raise ValueError("no time")
    return whole(tokens, 1, _MOST_TOKENS), number(seconds)
