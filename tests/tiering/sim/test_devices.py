"""Modelled devices: what numbers they take, what comes of measured rates, and how work is shared."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.kernels.machine.read_rates import ReadRate
from penstock.tiering.errors import DeviceModelError
from penstock.tiering.events import Part, Purpose, Read, Slot
from penstock.tiering.sim.agenda import Agenda, Shared
from penstock.tiering.sim.devices import Drive, Memory, fitted
from penstock.tiering.sim.drive import Reads
from penstock.tiering.sim.noise import Dice, Noise, Spell, uniform
from penstock.tiering.units import BlockId, Extent, MiB

nothing = st.sampled_from([0, -1, -1e9, math.nan, -math.inf])


@given(st.sampled_from(["bandwidth", "single", "enough", "checksum"]), nothing)
def test_a_drive_without_speed_is_refused(field: str, value: float) -> None:
    with pytest.raises(DeviceModelError, match=rf"^Drive\.{field} = .*: it must be"):
        Drive(**{"bandwidth": 1e9, field: value})


@pytest.mark.parametrize(
    ("device", "numbers", "field"),
    [
        (Drive, {"bandwidth": math.inf}, "bandwidth"),
        (Drive, {"bandwidth": True}, "bandwidth"),
        (Drive, {"bandwidth": "fast"}, "bandwidth"),
        (Drive, {"bandwidth": 1e9, "latency": -1e-6}, "latency"),
        (Drive, {"bandwidth": 1e9, "latency": math.nan}, "latency"),
        (Drive, {"bandwidth": 1e9, "handling": -1.0}, "handling"),
        (Drive, {"bandwidth": 1e9, "contention": 1}, "contention"),
        (Drive, {"bandwidth": 1e9, "contention": -0.1}, "contention"),
        (Memory, {"bandwidth": 0}, "bandwidth"),
        (Memory, {"bandwidth": 1e9, "overhead": -1}, "overhead"),
        (Memory, {"bandwidth": 1e9, "products": 0}, "products"),
        (Memory, {"bandwidth": 1e9, "contention": 1.0}, "contention"),
        (Noise, {"failing": 1.1}, "failing"),
        (Noise, {"jitter": math.nan}, "jitter"),
        (Noise, {"slowdown": 0.5}, "slowdown"),
    ],
)
def test_what_cannot_be_is_named(device: Any, numbers: dict[str, Any], field: str) -> None:
    with pytest.raises(DeviceModelError, match=rf"^{device.__name__}\.{field} = "):
        device(**numbers)


@pytest.mark.parametrize("wrong", [(-1.0, 1.0, 0.5), (0.0, math.nan, 0.5), (0.0, 1.0, 0.0), (0.0, 1.0, 2.0)])
def test_a_spell_that_cannot_be_is_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(DeviceModelError, match="start and seconds"):
        Spell(0, *wrong)


@given(st.floats(1e-6, 1e-2), st.floats(1e8, 5e9), st.floats(1.0, 8.0))
def test_a_drive_is_found_again_in_its_rates(latency: float, single: float, more: float) -> None:
    rates = [ReadRate(size, 1, size / (latency + size / single)) for size in (MiB, 4 * MiB)]
    rates.append(ReadRate(4 * MiB, 8, more * single))
    drive = replace(fitted(rates), contention=0.2)
    assert drive.bandwidth == more * single
    assert (drive.latency, drive.single) == pytest.approx((latency, single), rel=1e-3)
    assert drive.rate(1, computing=False) == pytest.approx(single, rel=1e-3)
    assert drive.rate(16, computing=True) == pytest.approx(0.8 * more * single)


def test_rates_that_say_little_give_a_simple_drive() -> None:
    assert fitted([ReadRate(MiB, 4, 1e9)]) == Drive(1e9)
    assert fitted([ReadRate(MiB, 4, 1e9), ReadRate(MiB, 1, 5e8)]).single == pytest.approx(5e8)
    small_is_fast = fitted([ReadRate(MiB, 1, 4e8), ReadRate(3 * MiB, 1, 3e8)])
    assert small_is_fast.latency == 0.0
    assert small_is_fast.single == pytest.approx(4 / (1 / 4e8 + 3 / 3e8))
    with pytest.raises(DeviceModelError, match="penstock doctor"):
        fitted([])


def test_memory_is_bound_by_bytes_and_then_by_arithmetic() -> None:
    memory = Memory(1e9, products=4e9)
    assert memory.seconds(1_000_000_000, tokens=1) == memory.seconds(1_000_000_000, tokens=4) == 1.0
    assert memory.seconds(1_000_000_000, tokens=8) == 2.0


def test_jobs_share_what_there_is() -> None:
    """Two jobs of 10 at 2 a second, the second one a second later; at four seconds the rate falls to a half."""
    agenda, pace, ends = Agenda(), [2.0], {}
    shared = Shared(agenda, lambda jobs: pace[0])
    add = lambda name: shared.add(10.0, lambda: ends.update({name: agenda.now}))  # noqa: E731
    agenda.after(0.0, add, "one")
    agenda.after(1.0, add, "two")

    def slower() -> None:
        pace[0] = 1.0
        shared.changed()

    agenda.after(4.0, slower)
    while agenda.step():
        pass
    # one: 2 alone, then 3 of the 6 until four, 5 left at a half a second; two: 7 left then, 2 left at fourteen
    assert ends == {"one": pytest.approx(14.0), "two": pytest.approx(16.0)}
    assert shared.busy_seconds == pytest.approx(16.0)


def land(drive: Drive, sizes: list[int], *, noise: Noise | None = None, computing: bool = False) -> list[float]:
    """When reads of ``sizes`` land that are all submitted at the beginning."""
    agenda, ends, told = Agenda(), {}, []
    dice = Dice(0, noise or Noise())
    reads = Reads(
        0, drive, agenda, dice, lambda read, busy, _: ends.update({read.read: agenda.now + busy}), told.append
    )
    reads.beside(computing)
    for number, size in enumerate(sizes):
        part = Part(BlockId("dense", "d"), Extent(0, 0, size), Slot("stream", 0, size))
        reads.submit(Read(number, (part,), Purpose.DEMAND))
    while agenda.step():
        pass
    assert told
    assert told == [True, False] * (len(told) // 2)
    return [ends[number] for number in range(len(sizes))]


def test_reads_side_by_side_and_one_after_the_other() -> None:
    drive = Drive(100 * MiB, latency=0.5)
    assert land(drive, [MiB, MiB]) == pytest.approx([0.52, 0.52])
    assert land(drive, [8 * MiB, 8 * MiB]) == pytest.approx([0.58, 1.16]), "enough is under way"
    assert land(drive, [7 * MiB, 2 * MiB, MiB]) == pytest.approx([0.58, 1.1, 0.51 + 0.01]), "what still fits goes past"
    assert land(Drive(100 * MiB, single=25 * MiB), [MiB]) == pytest.approx([0.04])
    assert land(Drive(100 * MiB, single=25 * MiB), [MiB] * 4) == pytest.approx([0.04] * 4)


def test_what_slows_a_drive() -> None:
    assert land(Drive(100 * MiB, contention=0.5), [MiB], computing=True) == pytest.approx([0.02])
    assert land(Drive(100 * MiB, checksum=200 * MiB, handling=0.1), [MiB]) == pytest.approx([0.115])
    assert land(Drive(100 * MiB), [MiB], noise=Noise(slow=1.0, slowdown=3)) == pytest.approx([0.03])
    assert land(Drive(100 * MiB), [MiB], noise=Noise(spells=(Spell(0, 0.0, 1.0, 0.1),))) == pytest.approx([0.1])


@given(st.integers(0, 2**64), st.lists(st.integers(0, 1000), min_size=1, max_size=3))
def test_draws_are_even_and_repeat(seed: int, what: list[int]) -> None:
    assert uniform(seed, *what) == uniform(seed, *what)
    draws = [uniform(seed, *what, n) for n in range(400)]
    assert all(0 <= draw < 1 for draw in draws)
    assert 0.35 < sum(draws) / len(draws) < 0.65
    assert len(set(draws)) == len(draws)
