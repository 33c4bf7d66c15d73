"""What a model on paged KV says of it: counters, the trace, the command line's report."""

import json
from pathlib import Path

import pytest
import torch

import penstock
from penstock.runtime.cli.main import main
from penstock.runtime.engine.stats import Stats
from penstock.runtime.loading.handle import Handle
from tests.support.engines import engine_of
from tests.support.paged import paged, settle, tier_of
from tests.support.prompts import IDS, PROMPT
from tests.support.traces import load, spans

KiB, MiB = 1 << 10, 1 << 20
LONG = torch.randint(3, 300, (2, 200), generator=torch.Generator().manual_seed(1))


def decode(model: torch.nn.Module, steps: int = 6) -> None:
    with torch.no_grad():
        out = model(LONG, use_cache=True)
        for step in range(steps):
            out = model(LONG[:, step : step + 1], past_key_values=out.past_key_values, use_cache=True)


def test_counters_are_those_of_the_pages(tiny_dense_folder: Path, store: Path) -> None:
    with paged(tiny_dense_folder, store, "128KiB") as model:
        before = model.penstock.stats()
        assert (before.kv_host_bytes, before.kv_host_budget, before.kv_flash_bytes) == (0, 128 * KiB, 0)
        assert before.host_budget == 64 * MiB
        assert 128 * KiB < before.host_bytes <= 64 * MiB
        assert before.host_floor <= before.host_limit <= before.host_budget
        decode(model)
        pool = tier_of(model).pool
        settle(pool)
        after = model.penstock.stats()
        assert after.kv_bytes_read == after.kv_pages_read * 4 * KiB > 0
        assert after.kv_bytes_written > 128 * KiB
        assert after.kv_stall_seconds > 0
        assert (after.kv_host_bytes, after.kv_flash_bytes) == (0, 0), "the cache is gone"
        out = model(LONG, use_cache=True)
        during = model.penstock.stats()
        assert 64 * KiB < during.kv_host_bytes <= 128 * KiB
        assert during.kv_host_bytes + during.kv_flash_bytes >= 2 * 2 * 2 * 13 * 4 * KiB, "all pages are somewhere"
        assert during.resident_bytes == engine_of(model).bridge.resident_bytes() + during.kv_host_bytes
        assert out.past_key_values.get_seq_length() == 200


def test_they_are_zero_where_transformers_keeps_the_cache(tiny_dense_folder: Path, store: Path) -> None:
    with penstock.load(tiny_dense_folder, store=store, host_memory="64MiB") as model:
        decode(model)
        stats = model.penstock.stats()
    assert {name: value for name, value in stats.report().items() if name.startswith("kv_")} == {
        "kv_host_bytes": 0,
        "kv_host_budget": 0,
        "kv_host_limit": 0,
        "kv_device_bytes": 0,
        "kv_device_budget": 0,
        "kv_flash_bytes": 0,
        "kv_bytes_read": 0,
        "kv_bytes_written": 0,
        "kv_pages_read": 0,
        "kv_pages_up": 0,
        "kv_bytes_up": 0,
        "kv_stall_s": 0.0,
        "kv_pages_looked_at": 0,
        "kv_pages_passed_over": 0,
        "kv_pages_dropped": 0,
        "kv_dropped_share": 0.0,
        "kv_exact_layers": 0,
        "kv_unbounded_bytes": 0,
        "kv_unbounded_peak_bytes": 2 * (200 + 64) * 512,  # a cache has room for some more tokens
        "kv_unbounded_problem": "",
    }


def test_a_trace_shows_every_read_and_stall(tiny_dense_folder: Path, store: Path, tmp_path: Path) -> None:
    with paged(tiny_dense_folder, store, "128KiB") as model:
        pool = tier_of(model).pool
        decode(model)
        settle(pool)
        before, trace = model.penstock.stats(), model.penstock.trace(tmp_path / "run.json")
        decode(model)
        settle(pool)
        trace.stop()
        after = model.penstock.stats()
        assert pool.recorder is None
    reads = spans(load(tmp_path / "run.json"), "KV read")
    assert sum(read["args"]["bytes"] for read in reads) == after.kv_bytes_read - before.kv_bytes_read > 0
    assert sum(read["args"]["pages"] for read in reads) == after.kv_pages_read - before.kv_pages_read
    assert {read["pid"] for read in reads} == {3}
    stalled = sum(span["dur"] for span in spans(load(tmp_path / "run.json"), "KV stall")) / 1e6
    assert stalled == pytest.approx(after.kv_stall_seconds - before.kv_stall_seconds, abs=1e-5)


def test_generate_reports_them(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("penstock.tiering.kv.page_size.MOST_TOKENS", 16)
    prompt = " ".join([PROMPT] * 60)
    options = ["-n", "8", "--json", "--store", str(tmp_path / "store"), "--host-memory", "64MiB"]
    stats = Handle.stats

    def settled(handle: Handle) -> Stats:
        """Pages of a cache that is gone are there until the reads and writes of them have ended."""
        if handle.paged is not None:
            settle(handle.paged.tier.pool)
        return stats(handle)

    monkeypatch.setattr(Handle, "stats", settled)
    reports = []
    for more in ([], ["--kv-host-memory", "128KiB"]):
        capsys.readouterr()
        assert main(["generate", str(checkpoint), "-p", prompt, *options, *more]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    plain, paged = reports
    assert paged["token_ids"] == plain["token_ids"]
    assert paged["prompt_tokens"] == 60 * len(IDS)
    assert (plain["kv_host_budget"], paged["kv_host_budget"]) == (0, 128 * KiB)
    assert paged["host_budget"] == plain["host_budget"] == 64 * MiB
    assert paged["kv_bytes_read"] == 4 * KiB * paged["kv_pages_read"] > 0
    assert paged["kv_bytes_written"] > 0 < paged["kv_stall_s"]
    assert (paged["kv_host_bytes"], paged["kv_flash_bytes"]) == (0, 0), "the cache is gone"
