"""Recordings of KV: what is written is read back, and a new planner acts alike."""

import dataclasses
from typing import cast, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.errors import RecordingError
from penstock.tiering.kv.events import KVAction, KVEvent
from penstock.tiering.kv.planner import KVPlanner
from penstock.tiering.kv.setup import KVSetup
from penstock.tiering.planner.setup import Setup
from penstock.tiering.sim.kv_codec import KVCodec, pack, unpack
from penstock.tiering.sim.recording import Recording, Writer, first_kv_difference, read, replay_kv
from penstock.tiering.units import PAGE, MiB
from tests.support.kv_runs import happen
from tests.support.kv_world import KVWorld

SETUP = Setup({}, {}, {}, [], "lru", depth=1, read_limit=PAGE)


class Recorded:
    """A KV planner all of whose steps are written down; as KVPlanner for the rest."""

    def __init__(self, setup: KVSetup) -> None:
        self._planner, self._writer = setup.planner(), Writer(SETUP)
        self.lines = [self._writer.head, self._writer.begin_kv(setup)]
        self.kinds: set[str] = set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._planner, name)

    def handle(self, event: KVEvent) -> list[KVAction]:
        actions = self._planner.handle(event)
        self.kinds |= {type(each).__name__ for each in (event, *actions)}
        self.lines.append(self._writer.kv_step(float(len(self.lines)), event, actions))
        return actions

    def text(self) -> str:
        return "".join(self.lines) + self._writer.end(whole=True)


def recorded(seed: int) -> Recorded:
    """A random run that is recorded."""
    planner = Recorded(KVSetup(24 * PAGE, 2 * MiB, 6 * PAGE))
    happen(KVWorld(planner=cast(KVPlanner, planner)), seed)
    return planner


def test_what_is_written_is_read_back_and_replays() -> None:
    kinds: set[str] = set()
    for seed in range(12):
        planner = recorded(seed)
        found = read(planner.text().splitlines())
        assert (found.setup, found.kv) == (SETUP, KVSetup(24 * PAGE, 2 * MiB, 6 * PAGE))
        assert len(found.kv_steps) == len(planner.lines) - 2
        assert not found.steps
        assert first_kv_difference(found) is None
        kinds |= planner.kinds
    every = (*get_args(KVEvent), *get_args(KVAction))
    assert kinds == {kind.__name__ for kind in every}


def test_every_event_is_read_back_as_it_was() -> None:
    codec = KVCodec()
    steps = read(recorded(5).text().splitlines()).kv_steps
    for step in steps:
        again = codec.event_from(step.event)
        if step.event[0] != "O":  # a page that is opened would be another one
            assert codec.event(again) == step.event


def test_the_first_difference_is_found() -> None:
    found = read(recorded(3).text().splitlines())
    number = next(n for n, step in enumerate(found.kv_steps) if any(action[0] == "r" for action in step.actions))
    steps = list(found.kv_steps)
    steps[number] = steps[number]._replace(actions=[])
    assert first_kv_difference(dataclasses.replace(found, kv_steps=tuple(steps))) == number


def test_another_memory_acts_in_another_way() -> None:
    found = read(recorded(3).text().splitlines())
    assert found.kv is not None
    other = dataclasses.replace(found, kv=dataclasses.replace(found.kv, capacity=32 * PAGE))
    assert first_kv_difference(other) is not None


def test_without_pages_there_is_nothing_to_replay() -> None:
    found = Recording(SETUP, (), True)
    assert [*replay_kv(found)] == []
    assert first_kv_difference(found) is None


@pytest.mark.parametrize("line", ['["kv",{"capacity":1,"other":2}]', '["k",0.0,["O",1],[]]', '["k"]',
                                  '["k",0.0,["S",[[0,1,99999999999]]],[]]',
                                  '["k",0.0,["S",[0]],[]]',
                                  '["kv",{"capacity":1,"flash_limit":null,"device":0}]'])  # fmt: skip
def test_lines_that_make_no_sense_are_named(line: str) -> None:
    planner = Recorded(KVSetup(16 * PAGE))
    planner.lines.append(planner._writer._add(line))
    planner._writer._steps += 1
    with pytest.raises(RecordingError, match="makes no sense"):
        read(planner.text().splitlines())


@given(st.lists(st.integers(-5, 20)) | st.builds(range, st.integers(0, 5), st.integers(0, 60), st.integers(1, 4)))
def test_numbers_are_packed_and_unpacked(numbers: list[int]) -> None:
    packed = pack(numbers)
    assert unpack(packed) == list(numbers)
    if isinstance(numbers, range) and len(numbers) > 2:
        assert len(packed) == 1
