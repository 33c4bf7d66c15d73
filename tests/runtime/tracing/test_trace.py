"""Traces of real models under tight budgets: every layer, every stall and every byte read is in them."""

import gc
import stat
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import penstock
from penstock.runtime.engine.stats import Stats
from penstock.runtime.tracing.chrome import KINDS
from penstock.runtime.tracing.recorder import Recorder
from penstock.tiering.store.bundle.flash import BundleFlash
from tests.support.engines import engine_of
from tests.support.logits import IDS, least_budget, logits
from tests.support.traces import Event, load, nanoseconds, spans

FORWARDS = 5
"""Calls of the model that ``logits`` makes."""


@pytest.fixture(params=["tiny_moe_folder", "tiny_dense_folder"])
def model(request: pytest.FixtureRequest, store: Path) -> Any:
    """A model under the least budget."""
    folder = request.getfixturevalue(request.param)
    with penstock.load(folder, store=store, host_memory=least_budget(folder, store)) as model:
        yield model


def record(model: PreTrainedModel, path: Path) -> tuple[list[Event], Stats, Stats]:
    """The trace of ``logits``, and the counters at the moments when it began and ended."""
    lock = engine_of(model).bridge._lock  # between the two no prefetch may be issued
    with lock:
        before, trace = model.penstock.stats(), model.penstock.trace(path)
    logits(model)
    with lock:
        trace.stop()
        after = model.penstock.stats()
    return load(path), before, after


def watched(model: PreTrainedModel) -> list[str]:
    """What must appear once in every forward."""
    names = ["model.embed_tokens", "model.norm", "lm_head"]
    for layer in range(model.config.num_hidden_layers):
        names.append(f"model.layers.{layer}")
        names += [name for name, _ in model.named_modules() if name == f"model.layers.{layer}.mlp.experts"]
    return names


def test_every_layer_appears_once_in_every_forward(model: PreTrainedModel, tmp_path: Path) -> None:
    events, *_ = record(model, tmp_path / "run.json")
    forwards = spans(events, "forward")
    assert [span["args"] for span in forwards] == [{"tokens": IDS.numel()}] + [{"tokens": len(IDS)}] * (FORWARDS - 1)
    assert all(nanoseconds(a)[1] < nanoseconds(b)[0] for a, b in pairwise(forwards)), "each ends before the next begins"
    for forward in forwards:
        begin, end = nanoseconds(forward)
        inside = [s for s in spans(events, "layer") if begin <= nanoseconds(s)[0] and nanoseconds(s)[1] <= end]
        assert Counter(span["name"] for span in inside) == Counter(watched(model))
    assert len(spans(events, "layer")) == FORWARDS * len(watched(model))


def test_bytes_and_stalls_are_those_of_the_counters(model: PreTrainedModel, tmp_path: Path) -> None:
    events, before, after = record(model, tmp_path / "run.json")
    reads = spans(events, "read")
    by_kind = {kind: sum(s["args"]["bytes"] for s in reads if s["args"]["kind"] == kind) for kind in KINDS}
    assert by_kind["demand"] == after.demand_bytes - before.demand_bytes
    assert by_kind["prefetch"] == after.prefetch_bytes - before.prefetch_bytes
    assert by_kind["guess"] == after.guess_bytes - before.guess_bytes
    assert sum(by_kind.values()) > 0
    assert sum(by_kind.values()) == (
        after.flash_bytes_read - before.flash_bytes_read - (after.row_bytes - before.row_bytes)
    )
    stalled = sum(span["dur"] for span in spans(events, "stall")) / 1e6
    assert stalled == pytest.approx(after.stall_seconds - before.stall_seconds, abs=1e-6)
    asked = [event["args"] for event in events if event["name"].startswith("blocks asked for")]
    hits = after.expert_hits + after.dense_hits - before.expert_hits - before.dense_hits
    assert 0 < sum(sample["in memory"] for sample in asked) <= hits


def test_reads_name_their_blocks_and_where_they_lie(model: PreTrainedModel, tmp_path: Path) -> None:
    events, *_ = record(model, tmp_path / "run.json")
    blocks = {block.extent.offset: block for block in engine_of(model).bundle.manifest.blocks}
    for span in spans(events, "read"):
        block = blocks[span["args"]["offset"]]
        assert span["name"].startswith(block.id.module)
        assert span["args"]["file"] == "data-00000.bin"
        assert span["args"].get("unfinished") or span["args"]["MB/s"] > 0
    names = {span["name"].removeprefix("stall: ") for span in spans(events, "stall")}
    assert names <= {f"{b.id.module} {b.id.part}" if b.id.kind == "expert" else b.id.module for b in blocks.values()}


def test_a_model_that_fits_shows_its_layers(tiny_moe_folder: Path, store: Path, tmp_path: Path) -> None:
    with penstock.load(tiny_moe_folder, store=store, host_memory="1GiB") as model:
        logits(model)  # every expert is read here
        events, *_ = record(model, tmp_path / "run.json")
        assert len(spans(events, "layer")) == FORWARDS * len(watched(model))


def test_nothing_is_left_on_the_model(model: PreTrainedModel, tmp_path: Path) -> None:
    expected = logits(model)
    with model.penstock.trace(tmp_path / "run.json"):
        assert all(torch.equal(a, b) for a, b in zip(expected, logits(model), strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert engine_of(model).bridge.recorder is None


def test_one_after_the_other(model: PreTrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("an older one")
    path.chmod(0o644)
    first, *_ = record(model, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second, before, after = record(model, path)
    assert sum(span["args"]["bytes"] for span in spans(second, "read")) == (
        after.flash_bytes_read - before.flash_bytes_read - (after.row_bytes - before.row_bytes)
    )
    assert len(spans(first, "layer")) == len(spans(second, "layer"))
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_only_one_at_a_time(model: PreTrainedModel, tmp_path: Path) -> None:
    trace = model.penstock.trace(tmp_path / "first.json")
    with pytest.raises(penstock.TraceError, match=r"first\.json is being recorded; stop it"):
        model.penstock.trace(tmp_path / "second.json")
    logits(model)
    trace.stop()
    trace.stop()
    assert len(spans(load(tmp_path / "first.json"), "forward")) == FORWARDS
    assert not (tmp_path / "second.json").exists()


def test_two_threads_have_rows_of_their_own(model: PreTrainedModel, tmp_path: Path) -> None:
    threads = [threading.Thread(target=logits, args=(model,), name=f"worker {n}", daemon=True) for n in range(2)]
    before = model.penstock.stats()
    with model.penstock.trace(tmp_path / "run.json"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    events = load(tmp_path / "run.json")
    rows = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == 1}
    assert sorted(rows.values()) == ["worker 0", "worker 1"]
    for row in rows:
        mine = [span for span in spans(events, "layer") if span["tid"] == row]
        assert Counter(span["name"] for span in mine) == Counter(watched(model) * FORWARDS)
    stalled = sum(span["dur"] for span in spans(events, "stall")) / 1e6
    assert stalled == pytest.approx(model.penstock.stats().stall_seconds - before.stall_seconds, abs=1e-6)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_a_forward_leaves_a_valid_trace(
    model: PreTrainedModel, tmp_path: Path, error: type[BaseException]
) -> None:
    def fail(*_: Any) -> None:
        raise error

    inside = model.model.layers[1].self_attn.register_forward_pre_hook(fail)
    with pytest.raises(error), model.penstock.trace(tmp_path / "run.json"):
        logits(model)
    assert [span["name"] for span in spans(load(tmp_path / "run.json"), "layer")][-1] == "model.layers.1"
    inside.remove()
    events, *_ = record(model, tmp_path / "run.json")
    assert len(spans(events, "forward")) == FORWARDS


def test_a_drive_that_fails_is_shown(model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any) -> None:
        raise penstock.ReadError("injected")

    with model.penstock.trace(tmp_path / "run.json"), monkeypatch.context() as patch:
        patch.setattr(BundleFlash, "read", read)
        with pytest.raises(penstock.ReadError, match="injected"):
            logits(model)
    events = load(tmp_path / "run.json")
    assert any(span["args"].get("failed") for span in spans(events, "read"))


def test_closing_the_model_writes_the_trace(tiny_dense_folder: Path, store: Path, tmp_path: Path) -> None:
    with penstock.load(tiny_dense_folder, store=store, host_memory="1GiB") as model:
        model.penstock.trace(tmp_path / "run.json")
        logits(model)
        assert not (tmp_path / "run.json").exists()
    assert len(spans(load(tmp_path / "run.json"), "forward")) == FORWARDS
    with pytest.raises(penstock.Closed, match="load it again"):
        model.penstock.trace(tmp_path / "run.json")


def test_a_model_that_is_dropped_writes_its_trace(tiny_dense_folder: Path, store: Path, tmp_path: Path) -> None:
    model = penstock.load(tiny_dense_folder, store=store, host_memory="1GiB")
    model.penstock.trace(tmp_path / "run.json")
    logits(model)
    del model
    gc.collect()
    assert len(spans(load(tmp_path / "run.json"), "forward")) == FORWARDS


def test_where_nothing_can_be_written_nothing_is_recorded(model: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "absent" / "run.json", tmp_path / "file" / "run.json", tmp_path, "/dev/null", "a\0b"):
        with pytest.raises(penstock.TraceError, match="name a"):
            model.penstock.trace(path)
        assert engine_of(model).bridge.recorder is None
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    record(model, tmp_path / "run.json")


def test_a_folder_that_is_gone_at_the_end_is_an_error_once(model: PreTrainedModel, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    trace = model.penstock.trace(folder / "run.json")
    folder.rmdir()
    with pytest.raises(penstock.TraceError, match="No such file"):
        trace.stop()
    trace.stop()
    record(model, tmp_path / "run.json")


def test_a_link_is_followed(model: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "real" / "run.json")
    record(model, tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real" / "run.json").is_file()


def test_a_full_recorder_says_so(model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.runtime.tracing.trace.Recorder", lambda: Recorder(40))
    with model.penstock.trace(tmp_path / "run.json"):
        logits(model)
    text = (tmp_path / "run.json").read_text()
    assert "what came later is missing" in text
    events = load(tmp_path / "run.json")
    assert [event["name"] for event in events if event["ph"] == "i"] == ["the recorder was full"]
    assert 0 < len(spans(events, "layer")) < 40
