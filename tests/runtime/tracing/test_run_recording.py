"""Real runs, recorded from loading on: replay gives the identical list of actions."""

import os
import stat
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock.runtime.tracing.run_recording import RunRecording, recorded
from penstock.tiering.events import Begin, End, Expect, Grant, Read, Resize
from penstock.tiering.planner.regions import EXPERTS
from penstock.tiering.planner.setup import Setup
from penstock.tiering.sim.recording import first_difference, first_kv_difference
from penstock.tiering.store.bundle.flash import BundleFlash
from tests.support.engines import engine_of
from tests.support.logits import least_budget, logits
from tests.support.paged import settle, tier_of


@pytest.mark.parametrize("kind", ["tiny_moe_folder", "tiny_dense_folder"])
def test_replay_of_two_threads_acts_alike(
    kind: str, request: pytest.FixtureRequest, store: Path, tmp_path: Path
) -> None:
    folder, path = request.getfixturevalue(kind), tmp_path / "run.penrec"
    with penstock.load(folder, store=store, host_memory=least_budget(folder, store), record=path) as model:
        threads = [threading.Thread(target=logits, args=(model,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        logits(model)
        assert not path.exists()
        stats = model.penstock.stats()
    found = recorded(path)
    assert first_difference(found) is None
    assert found.whole
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    events, actions = [step.event for step in found.steps], [a for step in found.steps for a in step.actions]
    assert sum(isinstance(event, End) for event in events) == stats.forwards
    assert len({event.stream for event in events if isinstance(event, End)}) >= 2
    read = sum(action.size for action in actions if isinstance(action, Read))
    assert read >= stats.flash_bytes_read - stats.row_bytes > 0
    assert any(isinstance(action, Grant) for action in actions)
    assert any(isinstance(event, Expect) for event in events) == (kind == "tiny_moe_folder")


@pytest.mark.parametrize(("attention", "memory"), [("exact", "256KiB"), ("certified", "512KiB"), ("h2o", "256KiB")])
def test_kv_in_pages_is_replayed(
    tiny_dense_folder: Path, store: Path, tmp_path: Path, attention: str, memory: str
) -> None:
    path = tmp_path / "run.penrec"
    options: dict[str, Any] = {"kv_host_memory": memory, "kv_attention": attention, "record": path}
    with penstock.load(tiny_dense_folder, store=store, host_memory="64MiB", **options) as model, torch.no_grad():
        tier_of(model).page_tokens = 16
        out = model(torch.randint(3, 200, (2, 180), generator=torch.Generator().manual_seed(0)), use_cache=True)
        for token in range(6):
            if token == 3:
                tier_of(model).pool.resize(tier_of(model).pool.limit * 3 // 4)
            out = model(torch.full((2, 1), 5 + token), past_key_values=out.past_key_values)
        del out
        settle(tier_of(model).pool)
        stats = model.penstock.stats()
    found = recorded(path)
    assert first_kv_difference(found) is None
    assert first_difference(found) is None
    letters = Counter(step.event[0] for step in found.kv_steps)
    assert {"O", "S", "H", "L", "D", "M", "X"} <= letters.keys()
    actions = Counter(action[0] for step in found.kv_steps for action in step.actions)
    assert actions["r"] == letters["E"]
    assert actions["p"] == letters["W"] > 0
    if attention != "h2o":  # that drops what does not fit
        assert actions["r"] > 0
        assert stats.kv_pages_read > 0


def test_limits_that_move_are_replayed(tiny_moe_folder: Path, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.penrec"
    with penstock.load(tiny_moe_folder, store=store, host_memory="1GiB", record=path) as model:
        logits(model)
        capacity = engine_of(model).bridge._planner.residency.regions[EXPERTS].capacity
        engine_of(model).bridge.resize({EXPERTS: capacity // 2 // 4096 * 4096})
        logits(model)
    found = recorded(path)
    assert any(isinstance(step.event, Resize) for step in found.steps)
    assert first_difference(found) is None


def test_a_drive_that_fails_is_replayed(
    tiny_dense_folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.penrec"
    budget = least_budget(tiny_dense_folder, store)

    def read(*_: Any) -> None:
        raise penstock.ReadError("injected")

    with penstock.load(tiny_dense_folder, store=store, host_memory=budget, record=path) as model:
        logits(model)
        with monkeypatch.context() as patch:
            patch.setattr(BundleFlash, "read", read)
            with pytest.raises(penstock.ReadError, match="injected"):
                logits(model)
    assert first_difference(recorded(path)) is None


def test_a_recording_may_end_early(tiny_moe_folder: Path, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.penrec"
    with penstock.load(tiny_moe_folder, store=store, host_memory="1GiB", record=path) as model:
        logits(model)
        model.penstock.recording.stop()
        before = path.read_bytes()
        logits(model)
        model.penstock.recording.stop()
    assert path.read_bytes() == before
    assert recorded(path).whole


@pytest.mark.parametrize(("events", "kept"), [(39, 39), (40, 40), (41, 40)])
def test_a_recording_that_is_full_says_so(tmp_path: Path, events: int, kept: int) -> None:
    setup = Setup({}, {}, {}, [], "lru", depth=1, read_limit=4096)
    with RunRecording(setup, tmp_path / "run.penrec", limit=40) as recording:
        for number in range(events):
            recording.step(float(number), Begin(1), [])
    found = recorded(tmp_path / "run.penrec")
    assert [step.now for step in found.steps] == list(range(kept))
    assert found.whole == (events == kept)


def test_nobody_records_unless_asked(tiny_dense_folder: Path, store: Path) -> None:
    with penstock.load(tiny_dense_folder, store=store, host_memory="1GiB") as model:
        assert model.penstock.recording is None


def test_what_cannot_be_written_or_read_is_named(tiny_dense_folder: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(penstock.TraceError, match="nowhere"):
        penstock.load(tiny_dense_folder, store=store, host_memory="1GiB", record=tmp_path / "nowhere" / "run.penrec")
    with pytest.raises(penstock.RecordingError, match=r"run\.penrec"):
        recorded(tmp_path / "run.penrec")
    (tmp_path / "other").write_bytes(b"\xff\xfe")
    with pytest.raises(penstock.RecordingError, match="other"):
        recorded(tmp_path / "other")
    (tmp_path / "empty").touch()
    with pytest.raises(penstock.RecordingError, match="empty: this is no recording"):
        recorded(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(penstock.RecordingError, match="pipe cannot be read: it is not a regular file"):
        recorded(tmp_path / "pipe")
    os.truncate(tmp_path / "empty", 1 << 40)
    with pytest.raises(penstock.RecordingError, match="more than"):
        recorded(tmp_path / "empty")
