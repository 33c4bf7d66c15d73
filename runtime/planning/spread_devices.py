"""The devices of this machine as measured, as runs correct them, and at both ends of their repeats."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ...tiering.policy.lessons import Lesson
from ...tiering.policy.measured import Measured
from ...tiering.sim.devices import Drive
from ..forecasting.exact import CoresWithRate
from ..forecasting.forecast import Devices
from ..machine.drive_rates_file import DriveRates
from ..machine.timings import Timings
from .reference import TimingsNow

_LEAST_SHARE = 0.25
"""However long threads waited for cores: beyond that, a measurement says next to nothing, and so would its range."""


class MachineNow(NamedTuple):
    """The cores, and the drives by themselves, with the measurements behind them. Products with the model's weights
    are ``products`` times as fast as those with bfloat16 weights on the cores."""

    timings: TimingsNow
    drives: Sequence[Drive]
    measured: Sequence[DriveRates]
    products: float = 1.0

    @property
    def left(self) -> float:
        """The share of its speed that other programs leave this machine now."""
        return min(self.timings.left, *(drive.left for drive in self.measured), 1.0)

    def devices(self, lesson: Lesson, *, experts: bool) -> Devices:
        """The devices, corrected by ``lesson``."""
        return _devices(
            self, self.timings.kept.timings.times(1 / lesson.compute, lesson.compute), lesson.drive, experts
        )


def spread_over(machine: MachineNow, *, experts: bool) -> tuple[Devices, Devices]:
    """The devices at their slowest and at their fastest: as far off as repeats of their measurement were. Where threads
    waited for cores meanwhile, they may be slower or faster by as much: the best repeats may have had a core alone."""
    kept = machine.timings.kept
    cores = _ends(kept.measured)
    drives = [_ends(each.measured) for each in machine.measured]
    ends = []
    for end, pick in ((0, min), (1, max)):
        factor = pick((each[end] for each in drives), default=1.0)
        ends.append(_devices(machine, kept.timings.times(cores[end], 1 / cores[end]), factor, experts))
    return ends[0], ends[1]


def _ends(measured: Measured) -> tuple[float, float]:
    factor = (1 + measured.spread) / max(_LEAST_SHARE, 1 - measured.waited)
    return 1 / factor, factor


def _devices(machine: MachineNow, timings: Timings, factor: float, experts: bool) -> Devices:
    faster = [
        replace(
            drive,
            bandwidth=drive.bandwidth * factor,
            latency=drive.latency / factor,
            single=drive.single * factor,
        )
        for drive in machine.drives
    ]
    cores = CoresWithRate(timings, machine.products)
    return Devices([timings.beside_cores(drive, experts=experts) for drive in faster], cores)
