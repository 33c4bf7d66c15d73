"""Recordings: what is written is read back, replay acts alike wherever it runs, and damage is named."""

import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from penstock.tiering.errors import RecordingError
from penstock.tiering.events import Acquire, Action, Event, Grant, Read, ReadDone, ReadFailed, Refuse, Release, Resize
from penstock.tiering.planner.planner import Planner
from penstock.tiering.planner.regions import EXPERTS, KEPT, PINNED, STREAM, Home
from penstock.tiering.planner.setup import Setup
from penstock.tiering.sim.codec import setup_to
from penstock.tiering.sim.recording import Step, Writer, first_difference, read, replay
from penstock.tiering.units import PAGE, BlockId, Extent
from tests.support.worlds.runs import Run, random_run


class Recorded:
    """A planner all of whose steps are written down; as Planner for the rest."""

    def __init__(self, setup: Setup) -> None:
        self._planner, self._writer = setup.planner(), Writer(setup)
        self.lines = [self._writer.head]
        self.steps: list[Step] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._planner, name)

    def handle(self, event: Event, now: float) -> list[Action]:
        actions = self._planner.handle(event, now)
        self.steps.append(Step(now, event, list(actions)))
        self.lines.append(self._writer.step(now, event, actions))
        return actions

    def text(self) -> str:
        return "".join(self.lines) + self._writer.end(whole=True)


def recorded(run: Run) -> Recorded:
    planner = Recorded(run.world.setup())
    run.simulate(cast(Planner, planner))
    return planner


def lines(seed: int = 3) -> list[str]:
    return recorded(random_run(seed)).text().splitlines(keepends=True)


def test_what_is_written_is_read_back_and_replays() -> None:
    kinds: set[type] = set()
    for seed in range(60):
        planner = recorded(random_run(seed))
        found = read(planner.text().splitlines())
        assert found.setup == random_run(seed).world.setup()
        assert found.whole
        assert len(found.steps) == len(planner.steps) > 0
        for step, original in zip(found.steps, planner.steps, strict=True):
            assert step.now == original.now
            for one, other in zip([step.event, *step.actions], [original.event, *original.actions], strict=True):
                assert type(one) is type(other)
                if isinstance(one, ReadFailed | Refuse):
                    assert str(one.error) == str(cast(ReadFailed, other).error)
                else:
                    assert one == other
                kinds.add(type(one))
        assert first_difference(found) is None
        assert sum(map(len, replay(found))) == sum(len(step.actions) for step in found.steps)
    assert {Acquire, Release, Resize, ReadDone, ReadFailed, Refuse, Read, Grant} < kinds


def test_the_first_difference_is_found() -> None:
    found = read(lines())
    number = next(n for n, step in enumerate(found.steps) if step.actions)
    steps = list(found.steps)
    steps[number] = steps[number]._replace(actions=steps[number].actions[1:])
    assert first_difference(dataclasses.replace(found, steps=tuple(steps))) == number


def test_another_policy_acts_in_another_way() -> None:
    different = 0
    for seed in range(40):
        found = read(lines(seed))
        other = "lru" if found.setup.eviction != "lru" else "lfu"
        again = dataclasses.replace(found, setup=dataclasses.replace(found.setup, eviction=other))
        different += first_difference(again) is not None
    assert different > 0


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda found: [], "no recording"),
        (lambda found: ["\n"], "no recording"),
        (lambda found: ['{"traceEvents": []}\n'], "no recording"),
        (lambda found: ["penstock recording 4\n", *found[1:]], "reads version 3"),
        (lambda found: found[:1], "truncated"),
        (lambda found: found[:-1], "truncated"),
        (lambda found: [*found[:-1], found[-1][:-5]], "truncated"),
        (lambda found: [*found[:5], *found[6:]], "damaged"),
        (lambda found: [*found[:5], found[5].replace("0", "1", 1), *found[6:]], "damaged"),
        (lambda found: [found[0], found[1].replace('"depth":', '"depth":1'), *found[2:]], "damaged"),
    ],
)
def test_damage_is_named(damage: Callable[[list[str]], list[str]], says: str) -> None:
    with pytest.raises(RecordingError, match=says):
        read(damage(lines()))


@pytest.mark.parametrize("nonsense", ["[1.0, [], []]", "[1.0, [9], []]", '[1.0, ["A", 1, 1, [999]], []]', "7", "{",
                                      "[" * 100_000, '[NaN, ["B", 1], []]', '["1", ["B", 1], []]',
                                      '[1, ["B", true], []]',
                                      '[1, ["A", 1, 1, [-1]], []]', '[1, ["B", 1], [["r", 1, "demand", [[0, 0]]]]]',
                                      '[1, ["D", 1.0], []]', '[1, ["F", 1, 7], []]', '[1, ["L", {"x": -1}], []]',
                                      f'[1, ["L", {{"x": {1 << 70}}}], []]', '[1, ["C", 1, 2], []]', '{"a": 1}',
                                      '["kv", {"capacity": -1, "flash_limit": null, "device": 0}]'])  # fmt: skip
def test_nonsense_with_a_right_checksum_is_named(nonsense: str) -> None:
    writer = Writer(random_run(3).world.setup())
    line = writer._add(nonsense)
    writer._steps += 1
    with pytest.raises(RecordingError, match="makes no sense"):
        read((writer.head + line + writer.end(whole=True)).splitlines())


@pytest.mark.parametrize(
    ("name", "value"),
    [("regions", {"experts": 1 << 60}), ("limits", {"nowhere": 1}), ("homes", [[]]), ("homes", {}), ("cycle", [-1]),
     ("cycle", [10**6]), ("eviction", "other"), ("depth", 0), ("depth", True), ("drives", 1 << 40), ("guess", 1),
     ("read_limit", None), ("more", 1)],
)  # fmt: skip
def test_a_setup_that_no_planner_begins_with_is_named(name: str, value: object) -> None:
    setup = setup_to(random_run(3).world.setup())
    writer = Writer(random_run(3).world.setup())
    writer._digest = hashlib.blake2b(digest_size=16)
    head = writer._add(writer.head.splitlines()[0]) + writer._add(json.dumps(setup | {name: value}))
    with pytest.raises(RecordingError, match="makes no sense"):
        read((head + writer.end(whole=True)).splitlines())


def test_events_that_cannot_have_happened_are_named() -> None:
    found = read(lines())
    steps = (Step(0.0, ReadDone(10**9), []), *found.steps)
    with pytest.raises(RecordingError, match="its event 1 cannot have happened"):
        first_difference(dataclasses.replace(found, steps=steps))


# --- wherever it runs -----------------------------------------------------------------------------------------------


def aside() -> Setup:
    """Blocks that pass through the streaming region though they are in no cycle: only their arrival ranks them."""
    blocks = [BlockId("dense", f"m.{n}") for n in range(24)] + [BlockId("expert", "x", n) for n in range(24)]
    homes = {
        block: Home(Extent(0, n * PAGE, PAGE), STREAM if block.kind == "dense" else EXPERTS)
        for n, block in enumerate(blocks)
    }
    return Setup({PINNED: 0, KEPT: 0, STREAM: 8 * PAGE, EXPERTS: 8 * PAGE}, {}, homes, [], "lfu", 2, PAGE)


def test_replay_depends_on_no_hash(tmp_path: Path) -> None:
    """Hashes of texts differ from process to process, and with them the order of sets."""
    planner, dice = Recorded(aside()), random.Random(1)
    for ticket in range(200):
        block = dice.choice(list(aside().homes))
        actions = planner.handle(Acquire(ticket, 1, (block,)), float(ticket))
        for action in actions:
            if isinstance(action, Read):
                planner.handle(ReadDone(action.read), ticket + 0.5)
        planner.handle(Release(1, (block,)), ticket + 0.7)
    texts = [planner.text(), *(recorded(random_run(seed)).text() for seed in range(20))]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.penrec").write_text(text)
    script = (
        "import sys; from pathlib import Path; from penstock.tiering.sim.recording import first_difference, read\n"
        "for path in Path(sys.argv[1]).iterdir():\n"
        "    found = first_difference(read(path.read_text().splitlines()))\n"
        "    assert found is None, (path, found)"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], check=True, env=os.environ | {"PYTHONHASHSEED": seed}
        )
