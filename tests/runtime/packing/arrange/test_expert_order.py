"""Packing experts by use: the same bits, fewer reads, and only where it pays."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import penstock
from penstock.kernels.machine.read_rates import ReadRate
from penstock.runtime.checkpoints.describe import describe
from penstock.runtime.checkpoints.meta_model import build_meta_model
from penstock.runtime.cli.main import main
from penstock.runtime.experts import fast
from penstock.runtime.experts.experts import streamed_experts
from penstock.runtime.packing.arrange import expert_order as by_use
from penstock.runtime.packing.arrange.expert_order import order_experts
from penstock.runtime.packing.pack import pack
from penstock.runtime.routing.profiling import experts_of
from penstock.runtime.routing.routed import RoutedLayer
from penstock.runtime.routing.routes import Routes
from penstock.tiering.errors import TraceError
from penstock.tiering.store.bundle.reader import Bundle
from penstock.tiering.units import MiB
from tests.support.engines import engine_of
from tests.support.logits import least_budget, logits
from tests.support.timings import NOW, measured
from tests.support.tiny_models import EXPERT_NAMES, save_tiny, tiny_config

PAIRS = [(0, 7), (1, 6), (2, 5), (3, 4)]
"""Experts that are always used together."""


def paired(model: torch.nn.Module, tokens: int = 200) -> Routes:
    """A trace as if ``model`` used its experts in pairs, which are no neighbours by number."""
    random = np.random.default_rng(0)
    layers = tuple(
        RoutedLayer(path, count, np.array(PAIRS, dtype=np.uint8)[random.integers(0, 4, tokens)], None)
        for path, count in experts_of(model).items()
    )
    return Routes(model.config.model_type, "pairs", layers, (tokens,), (tokens,))


def packed(source: Path, store: Path, **options: object) -> Bundle:
    return pack(source, store=store, host_memory=64 * MiB, **options)


def order_of(bundle: Bundle) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for block in bundle.manifest.blocks:
        if block.id.kind == "expert":
            found.setdefault(block.id.module, []).append(block.id.part)
    return found


@pytest.fixture(scope="module")
def routes() -> Routes:
    return paired(build_meta_model(tiny_config("qwen3_moe"), torch.float32))


def test_pairs_become_neighbours(routes: Routes) -> None:
    plan = describe(build_meta_model(tiny_config("qwen3_moe"), torch.float32))
    arrangement = order_experts(routes, plan.blocks)
    assert set(arrangement.orders) == {layer.path for layer in routes.layers}
    for order in arrangement.orders.values():
        assert all(abs(order.index(one) - order.index(other)) == 1 for one, other in PAIRS)
    for gain in arrangement.gains.values():
        assert gain.reads_after == 1
        assert gain.reads_before > 1.5
        assert gain.bytes_per_read_after > 1.5 * gain.bytes_per_read_before


def test_what_only_the_first_half_shows_does_not_count(routes: Routes) -> None:
    layers = tuple(
        replace(layer, chosen=np.concatenate([layer.chosen, np.array([(0, 1), (2, 3), (4, 5), (6, 7)] * 50)]))
        for layer in routes.layers
    )
    changed = replace(routes, layers=layers, forwards=(400,), sequences=(400,))
    plan = describe(build_meta_model(tiny_config("qwen3_moe"), torch.float32))
    arrangement = order_experts(changed, plan.blocks)
    assert not arrangement.orders
    assert all(gain.groups <= 200 for gain in arrangement.gains.values())


def test_large_experts_stay_as_they_are(routes: Routes, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = describe(build_meta_model(tiny_config("qwen3_moe"), torch.float32))
    length = next(block.extent.length for block in plan.blocks if block.id.kind == "expert")
    monkeypatch.setattr(by_use, "READ_LIMIT", 2 * length - 1)
    arrangement = order_experts(routes, plan.blocks)
    assert (arrangement.orders, arrangement.gains) == ({}, {})


def test_the_bundle_is_another_one_and_is_found(tiny_moe_folder: Path, tmp_path: Path, routes: Routes) -> None:
    with packed(tiny_moe_folder, tmp_path) as plain, packed(tiny_moe_folder, tmp_path, routes=routes) as ordered:
        assert plain.manifest.identity != ordered.manifest.identity
        assert plain.folder != ordered.folder
        assert all(order == list(range(8)) for order in order_of(plain).values())
        assert order_of(ordered) == dict(order_experts(routes, plain.manifest.blocks).orders.items())
        ends = 0
        for block in ordered.manifest.blocks:
            assert block.extent.offset == ends, "blocks lie end to end in their order"
            ends = block.extent.end
    with packed(tiny_moe_folder, tmp_path) as again:
        assert again.folder == ordered.folder, "the order pays, so it is used"
    with packed(tiny_moe_folder, tmp_path, routes=routes) as again:
        assert again.folder == ordered.folder


def test_another_trace_is_another_bundle(tiny_moe_folder: Path, tmp_path: Path, routes: Routes) -> None:
    turned = replace(routes, layers=tuple(replace(layer, chosen=(layer.chosen + 1) % 8) for layer in routes.layers))
    with (
        packed(tiny_moe_folder, tmp_path, routes=routes) as one,
        packed(tiny_moe_folder, tmp_path, routes=turned) as other,
    ):
        assert one.folder != other.folder
    with packed(tiny_moe_folder, tmp_path) as again:
        assert again.folder == other.folder, "the latest"


def test_what_does_not_pay_changes_nothing(tiny_moe_folder: Path, tmp_path: Path, routes: Routes) -> None:
    always = replace(routes, layers=tuple(replace(each, chosen=each.chosen * 0) for each in routes.layers))
    with packed(tiny_moe_folder, tmp_path) as plain, packed(tiny_moe_folder, tmp_path, routes=always) as other:
        assert other.folder == plain.folder


@pytest.mark.parametrize("name", EXPERT_NAMES)
def test_no_bit_changes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and single tokens, in little memory, both ways to take a prompt's experts."""
    source = save_tiny(name, tmp_path / "checkpoint", torch.bfloat16)
    trace = paired(build_meta_model(tiny_config(name), torch.bfloat16))
    with packed(source, tmp_path / "ordered", routes=trace) as bundle:
        assert all(order != sorted(order) for order in order_of(bundle).values())
    options = {"attn_implementation": "eager", "host_memory": least_budget(source, tmp_path / "plain")}
    with penstock.load(source, store=tmp_path / "plain", **options) as model:
        expected = logits(model)
    for heap in (fast._HEAP, 0):
        monkeypatch.setattr(fast, "_HEAP", heap)
        with penstock.load(source, store=tmp_path / "ordered", **options) as model:
            assert model.penstock.bundle == bundle.folder
            found = logits(model)
            engine_of(model).check_integrity()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_pairs_are_one_read(tiny_moe_folder: Path, tmp_path: Path, routes: Routes) -> None:
    read = {}
    for name, trace in (("plain", None), ("ordered", routes)):
        packed(tiny_moe_folder, tmp_path / name, routes=trace).close()
        with penstock.load(
            tiny_moe_folder, store=tmp_path / name, host_memory="1GiB", experts_prefetch="off", io_depth=1
        ) as model:
            streamed = next(filter(None, map(streamed_experts, model.modules())))
            before = model.penstock.stats()
            for pair in PAIRS:
                hidden = torch.zeros(1, model.config.hidden_size)
                streamed.forward(hidden, torch.tensor([pair]), torch.ones(1, 2))
            after = model.penstock.stats()
            assert after.expert_misses - before.expert_misses == 8
            read[name] = after.reads - before.reads
    assert read["ordered"] == 4
    assert read["plain"] == 7, "3 and 4 are neighbours by number too"


# --- on the command line ---


def test_pack_reports_what_it_saves(
    tiny_moe_folder: Path, tmp_path: Path, routes: Routes, capsys: pytest.CaptureFixture[str]
) -> None:
    routes.save(tmp_path / "trace")
    arguments = ["pack", str(tiny_moe_folder), "--store", str(tmp_path / "store"), "--profile", str(tmp_path / "trace")]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["by_use"]
    assert [layer["path"] for layer in found] == [layer.path for layer in routes.layers]
    for layer in found:
        assert layer["by_use"]
        assert layer["reads_after"] == 1 < layer["reads_before"]
        assert layer["bytes_per_read_after"] > layer["bytes_per_read_before"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("by use") > 2


def test_a_trace_of_another_model_is_refused(tiny_moe_folder: Path, tmp_path: Path, routes: Routes) -> None:
    other = replace(routes, layers=routes.layers[:1])
    with pytest.raises(TraceError, match="of another model"):
        packed(tiny_moe_folder, tmp_path, routes=other)
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_a_bundle_stays_as_it_is(
    tiny_moe_folder: Path, tmp_path: Path, routes: Routes, capsys: pytest.CaptureFixture[str]
) -> None:
    routes.save(tmp_path / "trace")
    with packed(tiny_moe_folder, tmp_path / "store") as bundle:
        assert main(["pack", str(bundle.folder), "--profile", str(tmp_path / "trace")]) == 1
    assert "name the checkpoint with --profile" in capsys.readouterr().err


def test_plan_knows_it_is_packed(
    tiny_moe_folder: Path,
    tmp_path: Path,
    routes: Routes,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "penstock.runtime.machine.drives.drive_rates", lambda *_, **__: measured([ReadRate(MiB, 1, 1e9)])
    )
    monkeypatch.setattr("penstock.runtime.planning.reference.timings_here", lambda *_, **__: NOW)
    packed(tiny_moe_folder, tmp_path, routes=routes).close()
    assert main(["plan", str(tiny_moe_folder), "--store", str(tmp_path), "--host-memory", "1GiB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["flash_needed"] == 0
