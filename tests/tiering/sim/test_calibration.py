"""What recordings say of computing: simulated runs give back the numbers that they were made with."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.events import Action, Event
from penstock.tiering.planner.planner import Planner
from penstock.tiering.planner.regions import EXPERTS, KEPT, PINNED, STREAM, Home
from penstock.tiering.planner.setup import Setup
from penstock.tiering.sim.calibration import (
    OFTEN,
    Taken,
    bytes_used,
    delivered,
    dense_seconds,
    expert_seconds,
    guess_seconds,
    is_deep,
    layer_seconds,
    memory_of,
    timed,
    typical,
)
from penstock.tiering.sim.devices import Drive, Memory
from penstock.tiering.sim.recording import Recording, Step
from penstock.tiering.sim.simulator import simulate
from penstock.tiering.sim.workload import Layer, Pass, Workload, guessing, layers_of
from penstock.tiering.units import PAGE, BlockId, Extent

LAYERS, PER_LAYER, BLOCK = 3, 6, 10 * PAGE
BESIDES = 3e-3
TOKENS = [[sorted({token % 6, (token * 5 + layer + 1) % 6}) for layer in range(LAYERS)] for token in range(60)]
"""One expert or two."""


class Recorded(Planner):
    """Notes what it does."""

    steps: list[Step]

    def handle(self, event: Event, now: float) -> list[Action]:
        actions = super().handle(event, now)
        self.steps.append(Step(now, event, actions))
        return actions


def setup(cached: int) -> Setup:
    blocks = [
        block
        for layer in range(LAYERS)
        for block in (
            BlockId("dense", f"layers.{layer}.d"),
            *(BlockId("expert", f"layers.{layer}.mlp", part) for part in range(PER_LAYER)),
        )
    ]
    homes = {
        block: Home(Extent(0, place * BLOCK, BLOCK), EXPERTS if block.kind == "expert" else PINNED)
        for place, block in enumerate(blocks)
    }
    regions = {PINNED: LAYERS * BLOCK, KEPT: 0, STREAM: 0, EXPERTS: cached * BLOCK}
    return Setup(regions, {}, homes, [], "lru", depth=2, read_limit=PAGE)


def recorded(
    made: Setup, layers: list[Layer], passes: Sequence[Pass], drive: Drive, memory: Memory, guess: float = 0.0
) -> tuple[Recording, float]:
    """A recording, and the seconds of its last token."""
    planner = made.planner()
    planner.__class__, planner.steps = Recorded, []  # type: ignore[attr-defined]
    outcome = simulate(Workload(layers, [passes], guess_seconds=guess), planner, drives=[drive], memory=memory)
    return Recording(made, tuple(planner.steps), True), outcome.seconds_per_token[-1]  # type: ignore[attr-defined]


def run(cached: int, memory: Memory, passes: Sequence[Pass], guess: float = 0.0) -> tuple[Recording, float]:
    """Of a model with experts of which ``cached`` stay."""
    made = setup(cached)
    return recorded(made, layers_of(made.homes, seconds=BESIDES), passes, Drive(1e4 * BLOCK), memory, guess)


def dense_run(drive: Drive) -> tuple[Recording, float]:
    """Of a model all of whose layers are streamed, one block after the other, from ``drive``."""
    blocks = [BlockId("dense", f"layers.{layer}.{name}") for layer in range(LAYERS) for name in "ab"]
    homes = {block: Home(Extent(0, place * BLOCK, BLOCK), STREAM) for place, block in enumerate(blocks)}
    made = Setup(
        {PINNED: 0, KEPT: 0, STREAM: 2 * BLOCK, EXPERTS: 0}, {}, homes, blocks, "lru", depth=2, read_limit=PAGE
    )
    layers = layers_of(homes, seconds=BESIDES)
    return recorded(made, layers, [Pass(1)] * 5, drive, Memory(2 * BLOCK / 1e-3))


def decoded() -> list[Pass]:
    return [Pass(1, token, choices=2) for token in TOKENS]


def test_a_run_gives_its_memory_and_layers_back():
    memory = Memory(1e3 * BLOCK, overhead=2e-3)
    whole, seconds = run(LAYERS * PER_LAYER, memory, decoded())
    taken = expert_seconds(whole)
    assert len(taken) == LAYERS * (len(TOKENS) - 1), "each layer of each token, and not of the prompt"
    found = memory_of(typical(taken), [])
    assert found.bandwidth == pytest.approx(memory.bandwidth)
    assert found.overhead == pytest.approx(memory.overhead)
    assert layer_seconds(whole, memory, seconds) == pytest.approx(BESIDES)
    assert bytes_used(whole) == (LAYERS + sum(map(len, TOKENS[-1]))) * BLOCK


def test_computing_beside_reads_shows_what_is_lost():
    alone = [Taken(100, 1.0), Taken(200, 2.0)]
    assert memory_of(alone, []).contention == 0
    assert memory_of(alone, [Taken(100, 2.0), Taken(200, 4.0), Taken(300, 100.0)]).contention == pytest.approx(0.5)
    assert memory_of(alone, [Taken(100, 0.5)]).contention == 0, "faster beside a drive is chance"


def test_what_a_dense_model_computes_is_told_from_its_waiting():
    seconds = dense_seconds(dense_run(Drive(BLOCK / 1e-2))[0])
    assert seconds == pytest.approx([seconds[0]] * len(seconds))
    assert seconds[0] == pytest.approx(LAYERS * (BESIDES + 1e-3))
    assert dense_seconds(dense_run(Drive(1e6 * BLOCK))[0])[-1] == pytest.approx(seconds[0])


@pytest.mark.parametrize("lost", [0.0, 0.5])
@pytest.mark.parametrize("block_seconds", [5e-4, 2e-3, 1e-2])
def test_with_the_drive_that_was_recorded_a_run_takes_as_long(block_seconds, lost):
    recording, seconds = dense_run(Drive(BLOCK / block_seconds, contention=lost))
    found = delivered(recording)
    assert dense_run(found.drive())[1] == pytest.approx(seconds, rel=0.1)
    assert found.computing <= found.waiting <= BLOCK / block_seconds * 1.05
    assert found.waiting > found.computing or lost == 0 or block_seconds < 1e-3, "nobody ever waits for a fast drive"


def test_making_a_guess_is_timed():
    passes = list(guessing(decoded(), PER_LAYER, precision=0.5))
    assert guess_seconds(run(4, Memory(1e3 * BLOCK), passes, guess=7e-4)[0]) == pytest.approx(7e-4)
    assert guess_seconds(run(4, Memory(1e3 * BLOCK), decoded())[0]) == 0


@given(st.dictionaries(st.integers(1, 9), st.lists(st.floats(0.1, 9), min_size=1, max_size=9)))
def test_what_is_typical_was_seen_often(seen):
    found = dict(typical(Taken(size, seconds) for size, each in seen.items() for seconds in each))
    assert found.keys() == {size for size, each in seen.items() if len(each) >= OFTEN}
    for size, seconds in found.items():
        each = seen[size]
        assert 2 * sum(other < seconds for other in each) <= len(each)
        assert 2 * sum(other <= seconds for other in each) >= len(each)


def test_only_deep_layers_compute_besides():
    block = BlockId("dense", "norm")
    layers = [Layer((block,)), Layer((block, block)), Layer((), (block, block))]
    assert [is_deep(layer) for layer in layers] == [False, True, True]
    assert [layer.seconds for layer in timed(layers, lambda layer: 1.0 + len(layer.experts))] == [0, 1.0, 3.0]
