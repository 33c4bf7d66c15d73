"""Devices at both ends of what their measurements allow, and corrected by runs."""

from dataclasses import replace

import pytest

from penstock.kernels.machine.read_rates import ReadRate
from penstock.runtime.machine.drive_rates_file import DriveRates
from penstock.runtime.planning.spread_devices import MachineNow, spread_over
from penstock.tiering.policy.lessons import Lesson
from penstock.tiering.sim.devices import Drive
from penstock.tiering.units import MiB
from tests.support.timings import MEASURED, NOW, TIMINGS

RATES = DriveRates([ReadRate(MiB, 1, 2e9)], replace(MEASURED, spread=0.2))
TIMED = TIMINGS.model_copy(update={"token": 1e-3})
MACHINE = MachineNow(
    NOW._replace(kept=NOW.kept.model_copy(update={"timings": TIMED})), [Drive(2e9, latency=1e-4)], [RATES]
)


def test_repeats_say_how_far_devices_may_be_off() -> None:
    slow, fast = spread_over(MACHINE, experts=True)
    for devices, cores, drive in ((slow, 1 / 1.1, 1 / 1.2), (fast, 1.1, 1.2)):
        assert devices.timings.memory_for("bfloat16", experts=True).bandwidth == pytest.approx(cores * 1e10)
        assert devices.timings.token == pytest.approx(1e-3 / cores)
        assert devices.drives[0].bandwidth == pytest.approx(drive * 2e9)
        assert devices.drives[0].latency == pytest.approx(1e-4 / drive)


@pytest.mark.parametrize(("share", "factor"), [(0.5, 2.0), (0.99, 4.0)])
def test_threads_that_waited_for_cores_widen_both_ends(share: float, factor: float) -> None:
    waited = NOW._replace(kept=NOW.kept.model_copy(update={"measured": replace(MEASURED, spread=0.0, waited=share)}))
    slow, fast = spread_over(MACHINE._replace(timings=waited), experts=False)
    found = [devices.timings.memory_for("bfloat16", experts=False).bandwidth for devices in (slow, fast)]
    assert found == pytest.approx([1e10 / factor, 1e10 * factor])


def test_lessons_correct_cores_and_drives_apart() -> None:
    devices = MACHINE.devices(Lesson(compute=2.0, drive=0.5), experts=True)
    assert devices.timings.memory_for("bfloat16", experts=True).bandwidth == pytest.approx(5e9)
    assert devices.timings.token == pytest.approx(2e-3)
    assert devices.drives[0].bandwidth == pytest.approx(1e9)
    assert MACHINE.devices(Lesson(), experts=True).drives[0] == MACHINE.drives[0]


def test_what_others_leave_is_the_least_of_all_parts() -> None:
    assert MACHINE.left == 1.0
    assert MACHINE._replace(measured=[RATES._replace(left=0.3), RATES]).left == 0.3
    assert MACHINE._replace(timings=NOW._replace(left=0.2)).left == 0.2
