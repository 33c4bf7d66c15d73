"""Simulated runs whose result is known beforehand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from penstock.tiering.errors import DeviceModelError
from penstock.tiering.events import Action, Event, Grant
from penstock.tiering.planner.planner import Planner
from penstock.tiering.planner.regions import EXPERTS, KEPT, PINNED, STREAM, Home
from penstock.tiering.planner.setup import Setup
from penstock.tiering.sim.devices import Bus, Drive, Memory
from penstock.tiering.sim.host_tier import Below
from penstock.tiering.sim.noise import Noise, Spell
from penstock.tiering.sim.outcome import Outcome
from penstock.tiering.sim.simulator import simulate
from penstock.tiering.sim.workload import Layer, Pass, Workload, decode, forward, guessing, layers_of
from penstock.tiering.units import PAGE, BlockId, Extent

PER_LAYER = 4
PAGES = 10

FAST, SLOW = 1e12, 1e6
"""Bytes per second."""


def setup(layers: int, *, dense: str = PINNED, room: int = 0, cached: int = 0) -> Setup:
    """Layers of one dense block and PER_LAYER experts, PAGES long each; blocks of room for what is streamed, and for
    experts."""
    homes: dict[BlockId, Home] = {}
    for layer in range(layers):
        blocks = [BlockId("dense", f"layers.{layer}.d")]
        if cached:
            blocks += [BlockId("expert", f"layers.{layer}.mlp", n) for n in range(PER_LAYER)]
        for block in blocks:
            extent = Extent(0, len(homes) * PAGES * PAGE, PAGES * PAGE)
            homes[block] = Home(extent, EXPERTS if block.kind == "expert" else dense)
    pinned = layers if dense == PINNED else 0
    regions = {PINNED: pinned, KEPT: 0, STREAM: room, EXPERTS: cached}
    cycle = [block for block in homes if homes[block].region == STREAM]
    sizes = {region: count * PAGES * PAGE for region, count in regions.items()}
    return Setup(sizes, {}, homes, cycle, "lru", depth=2, read_limit=PAGE)


def run(
    made: Setup, *streams: Sequence[Pass], drive: float = FAST, memory: float | Memory = FAST, **options: Any
) -> Outcome:
    workload = Workload(layers_of(made.homes), streams)
    cores = memory if isinstance(memory, Memory) else Memory(memory)
    return simulate(workload, made.planner(), memory=cores, **({"drives": [Drive(drive)]} | options))


BLOCK = PAGES * PAGE


def test_what_is_in_memory_is_bound_by_memory() -> None:
    done = run(setup(3), [Pass(1)] * 5, memory=1000 * BLOCK)
    assert done.tokens_per_second == pytest.approx(1000 / 3)
    assert done.seconds_per_token == pytest.approx([0.003] * 5)
    assert (done.limited_by, done.bytes_read, done.hit_ratio, done.stall_seconds) == ("memory", 0, 1.0, 0.0)


@pytest.mark.parametrize(("bus", "drive", "limit"), [(1000, 600, "bus"), (1000, 400, "flash")])
def test_three_tiers_are_bound_by_the_bus_or_the_drive(bus: int, drive: int, limit: str) -> None:
    """Six blocks pass through the device; half of them stay in host memory."""
    above = setup(6, dense=STREAM, room=3)
    below = setup(6, dense=STREAM, room=2)
    homes = {
        block: replace(home, region=PINNED if n % 2 else STREAM) for n, (block, home) in enumerate(below.homes.items())
    }
    cycle = [block for block, home in homes.items() if home.region == STREAM]
    below = replace(below, homes=homes, cycle=cycle, regions={**below.regions, PINNED: 3 * BLOCK})
    lower = Below(below.planner(), Bus(bus * BLOCK))
    done = run(above, [Pass(1)] * 40, drive=drive * BLOCK, untimed=10, below=lower)
    assert (done.bytes_copied, done.bytes_read) == (6 * BLOCK * done.tokens, 3 * BLOCK * done.tokens)
    assert done.limited_by == limit
    busy = {"bus": done.bus_busy_seconds, "flash": done.drive_busy_seconds[0]}[limit]
    assert busy == pytest.approx(done.seconds, rel=0.05)
    lower.planner.check_integrity()


def test_a_cycle_is_bound_by_the_drive() -> None:
    """What was used last is needed last, and goes for what comes next: the drive never idles, nothing stays."""
    done = run(setup(6, dense=STREAM, room=3), [Pass(1)] * 40, drive=1000 * BLOCK, untimed=10)
    assert done.limited_by == "flash"
    assert done.bytes_read / done.seconds == pytest.approx(1000 * BLOCK, rel=0.02)
    assert done.bytes_read == 6 * BLOCK * done.tokens
    assert done.drive_busy_seconds == pytest.approx((done.seconds,), rel=0.02)


def test_reading_goes_on_beside_computing() -> None:
    """As long to read as to compute: nearly nothing is waited for."""
    done = run(setup(6, dense=STREAM, room=3), [Pass(1)] * 40, drive=1000 * BLOCK, memory=1000 * BLOCK, untimed=10)
    assert done.tokens_per_second == pytest.approx(1000 / 6, rel=0.05)
    assert done.stall_seconds < 0.1 * done.seconds
    slowed = run(
        setup(6, dense=STREAM, room=3),
        [Pass(1)] * 40,
        memory=1000 * BLOCK,
        untimed=10,
        drives=[Drive(1000 * BLOCK, contention=0.5)],
    )
    assert slowed.tokens_per_second < 0.9 * done.tokens_per_second


def test_every_miss_is_read_and_every_hit_is_not() -> None:
    tokens = [[[0, 1]], [[1, 2]], [[0, 3]]]
    done = run(setup(1, cached=3), list(decode(tokens)))
    assert (done.counters.expert_hits, done.counters.expert_misses) == (2, 4)
    assert done.bytes_read == 4 * BLOCK
    assert done.hit_ratio == 2 / 6


def test_computing_experts_takes_time_besides() -> None:
    """At once those that are here; each of the others when it comes."""
    passes = list(decode([[[0, 1]], [[0, 1]]]))
    workload, one_by_one = Workload(layers_of(setup(1, cached=2).homes), [passes]), replace(setup(1, cached=2), depth=1)
    slow = Memory(FAST, overhead=0.25)
    done = simulate(workload, one_by_one.planner(), drives=[Drive(FAST, latency=1.0)], memory=slow)
    assert done.seconds_per_token == pytest.approx([1.0 + 1.0 + 0.25, 0.25], abs=1e-6)


def test_a_prompt_reads_every_expert_once() -> None:
    tokens = [[[(n + pick) % PER_LAYER for pick in range(2)]] * 2 for n in range(40)]
    prompt = forward(tokens)
    assert prompt == Pass(40, [[0, 1, 2, 3]] * 2, choices=80)
    done = run(setup(2, cached=8), [prompt])
    assert done.bytes_read == 8 * BLOCK
    assert done.tokens == 40


def test_right_guesses_are_read_while_computing() -> None:
    tokens = [[[(n + layer) % PER_LAYER] for layer in range(3)] for n in range(60)]
    plain = list(decode(tokens))
    layers = [Layer(layer.dense, layer.experts, seconds=0.002) for layer in layers_of(setup(3, cached=4).homes)]

    def timed(passes: list[Pass]) -> Outcome:
        made = setup(3, cached=4)
        return simulate(
            Workload(layers, [passes]), made.planner(), drives=[Drive(1000 * BLOCK)], memory=Memory(FAST), untimed=10
        )

    none, right = timed(plain), timed(list(guessing(plain, PER_LAYER, precision=1.0)))
    wrong = timed(list(guessing(plain, PER_LAYER, precision=0.0)))
    assert right.tokens_per_second > 1.1 * none.tokens_per_second
    assert right.counters.guess_bytes_used == right.counters.guess_bytes > 0
    assert wrong.counters.guess_bytes_used < 0.1 * max(1, wrong.counters.guess_bytes)
    assert wrong.counters.guess_bytes < right.counters.guess_bytes, "guessing stops where it costs"


def test_streams_share_the_cores() -> None:
    alone = run(setup(3), [Pass(1)] * 10, memory=1000 * BLOCK)
    both = run(setup(3), [Pass(1)] * 10, [Pass(1)] * 10, memory=1000 * BLOCK)
    assert both.tokens_per_second == pytest.approx(alone.tokens_per_second)
    assert both.seconds_per_token == pytest.approx([0.006] * 20)


def test_computing_is_slower_beside_reading() -> None:
    """A layer takes a millisecond alone; while others are read, as they always are, half of the speed is lost."""
    passes = [Pass(1)] * 10
    made = setup(4, dense=STREAM, room=2)
    timed = {"drive": 100 * BLOCK, "untimed": 2}
    alone = run(made, passes, memory=Memory(1000 * BLOCK), **timed)
    beside = run(made, passes, memory=Memory(1000 * BLOCK, contention=0.5), **timed)
    assert alone.compute_seconds == pytest.approx(0.004 * 8, rel=0.01)
    assert beside.compute_seconds == pytest.approx(0.008 * 8, rel=0.01)


def test_reads_take_time_from_computing() -> None:
    """Of every millisecond of a read, the cores have half a millisecond of work with it."""
    passes = list(decode([[[n % PER_LAYER]] for n in range(20)]))
    free = run(setup(1, cached=1), passes, drive=1000 * BLOCK)
    busy = run(setup(1, cached=1), passes, drives=[Drive(1000 * BLOCK, handling=0.0005)])
    assert free.seconds_per_token == pytest.approx([0.001] * 20, rel=1e-3)
    assert busy.seconds_per_token == pytest.approx([0.0015] * 20, rel=1e-3)
    assert busy.compute_seconds == pytest.approx(free.compute_seconds + 20 * 0.0005)


def test_streams_wait_for_each_other_and_share_what_is_read() -> None:
    alone = run(setup(40, dense=STREAM, room=16), [Pass(1)] * 10, drive=1000 * BLOCK)
    both = run(setup(40, dense=STREAM, room=16), [Pass(1)] * 10, [Pass(1)] * 10, drive=1000 * BLOCK)
    assert both.bytes_read < 1.2 * alone.bytes_read


def test_the_same_seed_is_the_same_run() -> None:
    tokens = [[[n * 7 % PER_LAYER, (n * 5 + 1) % PER_LAYER] for _ in range(2)] for n in range(20)]
    noise = Noise(slow=0.1, jitter=0.2, failing=0.02)

    def again(seed: int) -> Outcome:
        passes = [Pass(1, [sorted(set(layer)) for layer in token], choices=2) for token in tokens]
        return run(setup(2, cached=2), passes, passes, drive=1000 * BLOCK, memory=1e9, noise=noise, seed=seed)

    assert again(1) == again(1)
    assert again(1) != again(2)


def test_a_read_that_fails_fails_one_pass() -> None:
    done = run(setup(1, cached=1), list(decode([[[0]], [[1]], [[2]]])), noise=Noise(failing=1.0))
    assert [each.failed for each in done.passes] == [True] * 3
    assert (done.tokens, done.tokens_per_second) == (0, 0.0)


def test_a_drive_may_be_slow_for_a_while() -> None:
    passes = list(decode([[[n % PER_LAYER]] for n in range(8)]))
    spell = Spell(0, start=0.0025, seconds=0.02, speed=0.5)
    done = run(setup(1, cached=1), passes, drive=1000 * BLOCK, noise=Noise(spells=(spell,)))
    assert done.seconds_per_token == pytest.approx([0.001, 0.001, 0.0015, *[0.002] * 5], rel=1e-3)


def test_less_room_after_a_while() -> None:
    passes = list(decode([[[n % 2]] for n in range(20)]))
    slow = {"memory": 1000 * BLOCK}
    assert run(setup(1, cached=2), passes, **slow).bytes_read == 2 * BLOCK
    less = run(setup(1, cached=2), passes, resizes=[(0.0199, {EXPERTS: BLOCK})], **slow)
    assert 8 * BLOCK < less.bytes_read < 14 * BLOCK


def test_a_drive_that_nobody_describes() -> None:
    with pytest.raises(DeviceModelError, match="describe every one"):
        run(setup(1), [], drives=[])
    with pytest.raises(DeviceModelError, match="drive number 3"):
        run(setup(1), [], noise=Noise(spells=(Spell(3, 0.0, 1.0, 0.5),)))


def test_one_who_waits_for_ever_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Planner.handle

    def grudging(self: Planner, event: Event, now: float) -> list[Action]:
        return [a for a in real(self, event, now) if not (isinstance(a, Grant) and a.block.kind == "expert")]

    monkeypatch.setattr(Planner, "handle", grudging)
    with pytest.raises(AssertionError, match=r"streams 1 wait for ever"):
        run(setup(1, cached=1), list(decode([[[0]]])))


def test_layers_are_elements_of_the_outermost_list() -> None:
    names = ["embed", "m.layers.0.q", "m.layers.0.mlp.up", "m.layers.1.q", "head"]
    expert = BlockId("expert", "m.layers.1.mlp", 0)
    blocks = [*(BlockId("dense", name) for name in names[:4]), expert, BlockId("dense", names[4])]
    found = layers_of(blocks)
    assert [[block.module for block in layer.dense] for layer in found] == [
        names[:1],
        names[1:3],
        names[3:4],
        names[4:],
    ]
    assert [layer.experts for layer in found] == [(), (), (expert,), ()]


def test_guesses_are_as_precise_as_told() -> None:
    passes = list(decode([[[n % 16, (n + 5) % 16] for _ in range(5)] for n in range(200)]))
    for precision in (0.0, 0.7, 1.0):
        right = total = 0
        for each in guessing(passes, 16, precision=precision, seed=3):
            for guess, came in zip(each.guessed, each.chosen[1:], strict=True):
                assert len(set(guess)) == len(guess) == len(came)
                total += len(guess)
                right += len(set(guess) & set(came))
        assert right / total == pytest.approx(precision, abs=0.05)


def test_wrong_guesses_are_what_is_chosen_elsewhere() -> None:
    passes = list(decode([[[n % 3] for _ in range(5)] for n in range(100)]))
    assert {expert for each in guessing(passes, 16, precision=0.0) for guess in each.guessed for expert in guess} == {
        *range(3)
    }
    alone = guessing(passes[:1], 16, precision=0.0)
    assert all(guess != [0] for each in alone for guess in each.guessed), "nothing else was ever chosen"
