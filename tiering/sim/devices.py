"""Modelled devices, each described by a few measured numbers: seconds, bytes, bytes per second (pure)."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import DeviceModelError
from ..policy.drive_reading import LARGEST_READ, Rate


@dataclass(frozen=True, slots=True)
class Drive:
    """A drive that delivers ``bandwidth`` to all reads together, and at most ``single`` to each.

    The first byte of a read comes ``latency`` after its start, so small reads need more of them in flight. While cores
    compute, a drive loses the share ``contention`` of its speed, since both use the memory. No read starts beside
    ``enough`` bytes in flight (kernels/io/reading.py). Arrived bytes are verified at ``checksum`` while the next read
    goes on. That, and ``handling`` seconds for each read, take the cores' time.

    Raises DeviceModelError for an impossible number.
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
        """Total bytes per second of ``reads`` reads at once."""
        full = min(self.bandwidth, reads * self.single)
        return full * (1 - self.contention) if computing else full

    def delivered(self, size: int, reads: int) -> float:
        """Bytes per second of reads of ``size`` bytes, ``reads`` in flight at any time, beside idle cores."""
        return min(self.bandwidth, reads * size / (self.latency + size / self.single))


@dataclass(frozen=True, slots=True)
class Bus:
    """The bus from host memory to a device. Blocks are copied one after the other at ``bandwidth``, plus ``latency``.

    Raises DeviceModelError for an impossible number.
    """

    bandwidth: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        _check(self, bandwidth=_speed, latency=_duration)


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory that delivers weights at ``bandwidth``.

    For many tokens at once the arithmetic may take longer: ``products`` is bytes of weights times tokens per second.
    Each computation of experts, one or several, takes ``overhead`` seconds more. While a drive delivers, computing
    loses the share ``contention`` of its speed.

    Raises DeviceModelError for an impossible number.
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
    """The drive that is nearest to measured ``rates`` of one backend.

    The best rate is the bandwidth. With one read in flight, seconds are latency + size / single: a line through the
    sizes measured so. The latency is 0 if it or the speed would be negative. Raises DeviceModelError without rates.
    """
    if not rates:
        raise DeviceModelError("there are no rates to make a drive from; measure it with `penstock doctor`")
    bandwidth = max(rate.bytes_per_second for rate in rates)
    alone = [(rate.size, rate.size / rate.bytes_per_second) for rate in rates if rate.depth == 1]
    latency, pace = line(alone) if alone else (0.0, 0.0)
    return Drive(bandwidth, latency=latency, single=1 / pace if alone else math.inf)


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope of the least squares line through ``points``, which are positive.

    The line goes through the origin if one of the two would be negative or cannot be determined.
    """
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
