"""Modelled devices (pure): a few measured numbers each. Seconds, bytes, bytes per second."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import DeviceModelError
from ..policy.reads import LARGEST_READ, Rate


@dataclass(frozen=True, slots=True)
class Drive:
    """A drive that delivers ``bandwidth`` to all reads together, and at most ``single`` to each.

    A read's first byte comes ``latency`` after it began, so small reads need more of them in flight. While cores
    compute, a drive loses the share ``contention`` of its speed: what it delivers goes through the memory that they
    read. No read begins beside ``enough`` bytes under way (see kernels/io/reading.py). What has arrived is verified, at
    ``checksum``, while the next read goes on: that, and ``handling`` seconds for each read, take the cores' time.

    Raises DeviceModelError for a number that cannot be.
    """

    bandwidth: float
    latency: float = 0.0
    single: float = math.inf
    contention: float = 0.0
    enough: int = LARGEST_READ
    checksum: float = math.inf
    handling: float = 0.0

    def __post_init__(self) -> None:
        _check(self, bandwidth=_speed, latency=_duration, handling=_duration, contention=_share, enough=_speed)
        _check(self, single=_speed_or_unbounded, checksum=_speed_or_unbounded)

    def rate(self, reads: int, *, computing: bool) -> float:
        """Bytes per second that ``reads`` reads get together."""
        full = min(self.bandwidth, reads * self.single)
        return full * (1 - self.contention) if computing else full

    def delivered(self, size: int, reads: int) -> float:
        """Bytes per second of reads of ``size`` bytes, ``reads`` of them under way at any time, beside idle cores."""
        return min(self.bandwidth, reads * size / (self.latency + size / self.single))


@dataclass(frozen=True, slots=True)
class Bus:
    """What blocks are copied over from host memory to a device, one after the other, at ``bandwidth``; each takes
    ``latency`` besides. Raises DeviceModelError for a number that cannot be."""

    bandwidth: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        _check(self, bandwidth=_speed, latency=_duration)


@dataclass(frozen=True, slots=True)
class Memory:
    """Weights come out of memory at ``bandwidth``. Of many tokens at once the arithmetic may take longer: ``products``
    is bytes of weights times tokens per second. Whenever experts are computed, several at a time or one, that takes
    ``overhead`` seconds besides. While a drive delivers, computing loses the share ``contention`` of its speed.

    Raises DeviceModelError for a number that cannot be.
    """

    bandwidth: float
    overhead: float = 0.0
    products: float = math.inf
    contention: float = 0.0

    def __post_init__(self) -> None:
        _check(self, bandwidth=_speed, overhead=_duration, products=_speed_or_unbounded, contention=_share)

    def seconds(self, size: int, tokens: int = 1) -> float:
        """Seconds to multiply ``tokens`` tokens by ``size`` bytes of weights."""
        return size * max(1 / self.bandwidth, tokens / self.products)


def fitted(rates: Sequence[Rate]) -> Drive:
    """The drive that comes nearest to measured ``rates`` of one backend.

    The best rate is the bandwidth. With one read in flight, seconds are latency + size / single: a straight line
    through the sizes that were measured so; without latency, where that or the speed would be negative. Raises
    DeviceModelError without any rates.
    """
    if not rates:
        raise DeviceModelError("there are no rates to make a drive from; measure it with `penstock doctor`")
    bandwidth = max(rate.bytes_per_second for rate in rates)
    alone = [(rate.size, rate.size / rate.bytes_per_second) for rate in rates if rate.depth == 1]
    latency, pace = line(alone) if alone else (0.0, 0.0)
    return Drive(bandwidth, latency=latency, single=1 / pace if alone else math.inf)


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope of the line of least squares through ``points``, all positive; through the origin where one
    of the two would be negative, or nothing tells them apart."""
    x, y = [point[0] for point in points], [point[1] for point in points]
    if len(set(x)) > 1:
        found = statistics.linear_regression(x, y)
        if found.intercept >= 0 and found.slope > 0:
            return found.intercept, found.slope
    return 0.0, sum(y) / sum(x)


# --- what numbers can be --------------------------------------------------------------------------------------------


def _speed(value: float) -> str | None:
    return None if 0 < value < math.inf else "it must be a number above 0"


def _speed_or_unbounded(value: float) -> str | None:
    return None if value > 0 else "it must be above 0; leave it out for no bound"


def _duration(value: float) -> str | None:
    return None if 0 <= value < math.inf else "it must be a number of seconds, 0 or more"


def _share(value: float) -> str | None:
    return None if 0 <= value < 1 else "it must be a share: 0 or more, and below 1"


def _check(device: object, **rules: Callable[[float], str | None]) -> None:
    for field, rule in rules.items():
        value = getattr(device, field)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        wrong = rule(value) if number else "it must be a number"
        if wrong:
            raise DeviceModelError(f"{type(device).__name__}.{field} = {value!r}: {wrong}")
