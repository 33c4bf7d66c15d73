"""Seeded faults and jitter of a simulated run (pure)."""

from dataclasses import dataclass

from ..errors import DeviceModelError


@dataclass(frozen=True, slots=True)
class Spell:
    """From ``start`` on, drive number ``drive`` delivers ``speed`` (a share) of its bandwidth for ``seconds``."""

    drive: int
    start: float
    seconds: float
    speed: float

    def __post_init__(self) -> None:
        if not (self.start >= 0 and self.seconds >= 0 and 0 < self.speed <= 1):
            raise DeviceModelError(f"{self}: start and seconds must be 0 or more, speed above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Noise:
    """``failing`` and ``slow``: shares of the reads that fail, and that take ``slowdown`` times their bytes.

    Durations vary by ``jitter``, a share: 0.1 is from 10 % less to 10 % more, evenly.
    """

    failing: float = 0.0
    slow: float = 0.0
    slowdown: float = 10.0
    jitter: float = 0.0
    spells: tuple[Spell, ...] = ()

    def __post_init__(self) -> None:
        for field in ("failing", "slow", "jitter"):
            if not 0 <= getattr(self, field) <= 1:
                raise DeviceModelError(f"Noise.{field} = {getattr(self, field)!r}: it must be a share, from 0 to 1")
        if not 1 <= self.slowdown < float("inf"):
            raise DeviceModelError(f"Noise.slowdown = {self.slowdown!r}: it must be a number, 1 or more")


class Dice:
    """Random draws that depend on ``seed`` and on their subject, not on their order.

    So two policies under one seed meet the same faults.
    """

    def __init__(self, seed: int, noise: Noise, *, start: float = 0.0) -> None:
        """The times of spells count from ``start``."""
        self._seed, self._noise, self._start = seed, noise, start

    def fails(self, read: int) -> bool:
        """Whether read number ``read`` fails."""
        return self._noise.failing > 0 and uniform(self._seed, 1, read) < self._noise.failing

    def work(self, read: int, size: int) -> float:
        """The bytes that read number ``read`` of ``size`` bytes takes as much time as."""
        slow = self._noise.slow > 0 and uniform(self._seed, 2, read) < self._noise.slow
        return size * (self._noise.slowdown if slow else 1.0)

    def varied(self, seconds: float, *what: int) -> float:
        """``seconds`` with jitter."""
        if not self._noise.jitter:
            return seconds
        return seconds * (1 + self._noise.jitter * (2 * uniform(self._seed, 3, *what) - 1))

    def speed(self, drive: int, now: float) -> float:
        """The share of its bandwidth that ``drive`` delivers at ``now``."""
        share, second = 1.0, now - self._start
        for spell in self._noise.spells:
            if spell.drive == drive and spell.start <= second < spell.start + spell.seconds:
                share *= spell.speed
        return share


def uniform(*keys: int) -> float:
    """A number in [0, 1) determined by ``keys``.

    It uses the mixing of SplitMix64 ("Fast Splittable Pseudorandom Number Generators").
    """
    state = 0
    for key in keys:
        state = (state ^ key) + 0x9E3779B97F4A7C15 & _WORD
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _WORD
        state ^= state >> 31
    return (state >> 11) / (1 << 53)


_WORD = (1 << 64) - 1
