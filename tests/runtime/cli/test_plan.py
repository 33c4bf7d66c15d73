"""The command line tells what to expect of a model: ``penstock plan``, before and after packing, and ``bench``."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from penstock.tiering.units import PAGE, GiB, KiB
from tests.support.prompts import PROMPT
from tests.support.routes import made_up
from tests.support.tiny_models import save_tiny

LITTLE = ("--host-memory", "300KiB")

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_plan_says_the_least_budget_that_works(run, ask, checkpoint, quick):
    got = ask("plan", checkpoint, *LITTLE)
    assert got["fits"] is True
    assert got["limited_by"] == "flash"
    bound = 1e9 / got["flash_bytes_per_token"]  # computing beside it makes the drive slower, waiting lets it idle
    assert 0.5 * bound < got["tokens_per_second"] < bound
    assert 0 < ask("plan", checkpoint, "--host-memory", "450KiB")["hit_ratio"] < 1
    assert got["time_to_first_token_s"] > 1 / got["tokens_per_second"]
    least = got["minimum_host_memory"]
    assert got["host_memory_floor"] == least, "the machine shrinks it to what plan says would do"
    assert ask("plan", checkpoint, "--host-memory", least)["fits"]
    short = ask("plan", checkpoint, "--host-memory", least - 1)
    assert (short["fits"], short["minimum_host_memory"], short["tokens_per_second"]) == (False, least, None)
    assert short["curve"][0]["host_memory"] == least
    assert run("generate", checkpoint, "-p", PROMPT, "-n", 1, "--host-memory", least)[0] == 0
    assert run("generate", checkpoint, "-p", PROMPT, "-n", 1, "--host-memory", least - 1)[0] == 1


def test_plan_counts_what_a_token_touches(ask, checkpoint, quick):
    got = ask("plan", checkpoint)
    assert got["model_bytes"] < got["host_memory"] < got["model_bytes"] * 1.1
    assert (got["hit_ratio"], got["flash_bytes_per_token"], got["limited_by"]) == (1.0, 0, "memory")
    # Two of eight experts, and of the embedding only a row.
    experts, embedding = got["placement"]["expert_total_bytes"], 320 * 64 * 4
    expected = got["model_bytes"] - embedding - experts * 3 // 4
    assert got["memory_bytes_per_token"] == pytest.approx(expected, abs=PAGE)  # blocks are padded to pages
    assert got["tokens_per_second"] == pytest.approx(1e10 / got["memory_bytes_per_token"])


def test_plan_counts_the_keys_and_values_of_a_context(ask, tmp_path, quick):
    model = save_tiny("llama", tmp_path / "llama", torch.float32)
    plain = ask("plan", model, "--host-memory", "4MiB")
    assert not any(name.startswith("kv_") for name in plain)
    free = ask("plan", model, "--host-memory", "4MiB", "--context", "20000")
    size = 20000 * 2 * 2 * 2 * 16 * 4
    assert (free["kv_bytes"], free["kv_flash_bytes_per_token"], free["kv_host_memory"]) == (size, 0, 0)
    assert free["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    assert free["tokens_per_second"] < plain["tokens_per_second"]
    paged = ask("plan", model, "--host-memory", "4MiB", "--kv-host-memory", "2MiB", "--context", "20000")
    assert (paged["host_memory"], paged["kv_host_memory"]) == (4 << 20, 2 << 20)
    newest = 2 * 2 * 512 * 128  # have the memory of full pages
    assert size - (3 << 19) <= paged["kv_flash_bytes_per_token"] <= size - (3 << 19) + newest
    assert paged["kv_flash_bytes"] == paged["kv_flash_bytes_per_token"]
    assert paged["tokens_per_second"] < free["tokens_per_second"]
    assert paged["tokens_per_second"] <= 1e9 / paged["kv_flash_bytes_per_token"]
    assert paged["limited_by"] == "flash"
    assert paged["minimum_host_memory"] == free["minimum_host_memory"] + (2 << 20)


@pytest.mark.parametrize("packed", [False, True])
def test_plan_reads_the_planes_that_the_quality_asks_for(run, ask, tmp_path, quick, packed):
    """The bundle is the same; of experts in two planes, a token with the first alone reads about half."""
    source = save_tiny("qwen3_moe", tmp_path / "moe", torch.bfloat16, hidden_size=128, moe_intermediate_size=128)
    if packed:
        source = ask("pack", source, "--weights-format", "nested")["bundle"]
    found = {
        quality: ask(
            *("plan", source, "--weights-format", "nested", "--weights-quality", quality, "--host-memory", "500KB")
        )
        for quality in ("full", "adaptive", "base")
    }
    full, adaptive, base = found.values()
    assert len({(each["model_bytes"], each["flash_needed"]) for each in found.values()}) == 1
    assert base["placement"]["expert_total_bytes"] == adaptive["placement"]["expert_total_bytes"]
    assert base["placement"]["expert_total_bytes"] < 0.6 * full["placement"]["expert_total_bytes"]
    assert base["minimum_host_memory"] < full["minimum_host_memory"]
    assert base["memory_bytes_per_token"] < full["memory_bytes_per_token"]
    assert base["flash_bytes_per_token"] < adaptive["flash_bytes_per_token"] < full["flash_bytes_per_token"]
    assert base["hit_ratio"] > full["hit_ratio"]


def test_plan_shows_a_curve_and_recommends_from_it(ask, checkpoint, quick):
    got = ask("plan", checkpoint, *LITTLE)
    curve = got["curve"]
    sizes = [row["host_memory"] for row in curve]
    assert sizes == sorted(set(sizes))
    assert sizes[0] == got["minimum_host_memory"]
    assert sizes[-1] > got["model_bytes"]
    (own,) = [row for row in curve if row["host_memory"] == 300 * KiB]
    assert own.items() - {("tokens_per_second_per_gib", own["tokens_per_second_per_gib"])} <= got.items()
    assert got["recommended_host_memory"] in sizes
    for before, after in pairwise(curve):
        bought = after["tokens_per_second_per_gib"] * (after["host_memory"] - before["host_memory"]) / GiB
        assert before["tokens_per_second"] + bought == pytest.approx(after["tokens_per_second"])
    assert curve[-1]["tokens_per_second"] == max(row["tokens_per_second"] for row in curve)
    assert (curve[-1]["hit_ratio"], curve[-1]["flash_bytes_per_token"]) == (1.0, 0)


def test_plan_needs_only_a_configuration(ask, checkpoint, quick, tmp_path):
    folder = tmp_path / "config-only"
    folder.mkdir()
    (folder / "config.json").write_text((checkpoint / "config.json").read_text())
    from_config, from_weights = (ask("plan", place) for place in (folder, checkpoint))
    assert from_config["fits"] is True
    for name in ("model_bytes", "tokens_per_second"):  # in a file tensors lie at addresses, which takes some padding
        assert from_config[name] == pytest.approx(from_weights[name], rel=0.2)


def test_plan_takes_the_routing_of_a_trace(run, ask, checkpoint, quick, tmp_path):
    random = made_up(tokens=30, layers=2, experts=8, top_k=2)
    always = replace(random, layers=tuple(replace(layer, chosen=layer.chosen * 0 + [0, 1]) for layer in random.layers))
    found = {}
    for name, routes in (("random", random), ("always", always)):
        routes.save(tmp_path / name)
        found[name] = ask("plan", checkpoint, "--host-memory", "450KiB", "--profile", tmp_path / name)
        assert found[name]["routing"] == "noise"
        assert not any("assumed" in note for note in found[name]["notes"])
    assert found["always"]["hit_ratio"] == 1.0 > found["random"]["hit_ratio"]
    assumed = ask("plan", checkpoint, *LITTLE)
    assert assumed["routing"] == "assumed"
    assert any("assumed" in note for note in assumed["notes"])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda trace: made_up(experts=9).save(trace), "another model"),
        (lambda trace: trace.write_bytes(trace.read_bytes()[:-40]), "truncated"),
        (lambda trace: made_up(tokens=0).save(trace), "without a token"),
        (lambda trace: trace.unlink(), "cannot be read"),
    ],
)
def test_plan_refuses_a_trace_that_is_of_no_use(run, checkpoint, quick, tmp_path, damage, words):
    made_up().save(tmp_path / "trace")
    damage(tmp_path / "trace")
    code, out, err = run("plan", checkpoint, "--profile", tmp_path / "trace")
    assert (code, out) == (1, "")
    assert err.startswith("penstock: error: ")
    assert words in err
    assert len(err.splitlines()) == 1


def test_plan_is_the_same_before_and_after_packing(ask, run, checkpoint, quick):
    before = ask("plan", checkpoint, *LITTLE, "--flash-limit", "700KiB")
    bundle = ask("pack", checkpoint)["bundle"]
    for name in (checkpoint, bundle):
        after = ask("plan", name, *LITTLE, "--flash-limit", "700KiB")
        assert (before["flash_needed"], after["flash_needed"]) == (before["model_bytes"], 0)
        assert after["exact"] == (before["exact"] | {"packed": "as-is"} if name == checkpoint else None)
        for changed in ("flash_needed", "flash_free", "exact"):
            after[changed] = before[changed]
        assert after == before
    assert not ask("plan", save_tiny("llama", "other"), "--flash-limit", "700KiB")["fits"]
    out = run("plan", checkpoint, *LITTLE)[1]
    assert "experts" in out
    assert "fits" in out


def test_stripes_are_dealt_to_shown_and_planned_with(run, ask, checkpoint, quick, monkeypatch, tmp_path):
    stripes = ("--store-stripes", "b", "--store-stripes", "c,d")
    alike = ask("plan", checkpoint, *LITTLE)
    for name in ("store", "b", "c", "d"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("penstock.runtime.machine.drives.drive_under", str)  # as if each folder were a drive
    planned = ask("plan", checkpoint, *LITTLE, "--store", tmp_path / "store", *stripes)
    assert planned["flash_bytes_per_second"] == 4 * alike["flash_bytes_per_second"]
    assert not any(list((tmp_path / name).iterdir()) for name in ("store", "b")), "a plan makes nothing"
    assert run("plan", checkpoint, *LITTLE, "--store", tmp_path / "store", *stripes, "--flash-limit", "700KiB")[0] == 0
    packed = ask("pack", checkpoint, *stripes)
    shown = ask("inspect", packed["bundle"])
    folders = [Path(drive["folder"]) for drive in shown["drives"]]
    assert folders[0] == Path(packed["bundle"])
    assert [folder.parent for folder in folders[1:]] == [tmp_path / name for name in "bcd"]
    assert sum(drive["bytes"] for drive in shown["drives"]) == shown["bytes"]
    assert {drive["bytes_per_second"] for drive in shown["drives"]} == {1e9}
    assert [drive["same_drive_as"] for drive in shown["drives"]] == [None] + [packed["bundle"]] * 3
    out = run("inspect", packed["bundle"])[1]
    assert "gainsnothing" in "".join(out.split()), "wrapped anywhere: the folder's path may be long"
    assert run("verify", packed["bundle"])[0] == 0
    measured = ask("plan", packed["bundle"], *LITTLE)["flash_bytes_per_second"]
    assert 2e9 < measured < 4e9, "as the blocks are dealt, which of few blocks is uneven"
    (tmp_path / "b").rename(tmp_path / "unmounted")
    assert not ask("inspect", packed["bundle"])["drives"][1]["there"]
    for command in ("verify", "plan"):
        code, _, err = run(command, packed["bundle"], *LITTLE)
        assert (code, "not there; mount that drive" in err) == (1, True)


def test_bench_reports_decoding(run, ask, checkpoint, quick):
    got = ask("bench", checkpoint, "-n", 4, "--host-memory", "500KiB")
    assert (got["tokens"], got["prefill_tokens"], got["drive_bytes_per_second"]) == (4, 64, 1e9)
    assert got["flash_bytes_per_token"] > 0
    assert 0 < got["hit_ratio"] < 1
    assert got["drive_fraction"] == pytest.approx(got["flash_bytes_per_second"] / 1e9)
    assert 0 <= got["stall_share"] <= 1
    assert "tokens/s" in run("bench", checkpoint, "-n", 1)[1]


def test_plan_has_a_device_above(run, ask, checkpoint, quick, monkeypatch):
    monkeypatch.setattr("penstock.kernels.devices.measure.measure_bus", lambda _: (1e8, True))
    device = ("--device", "emulated", "--device-memory", "250KiB")
    got = ask("plan", checkpoint, *device, "--host-memory", "200KiB")
    assert (got["fits"], got["device_memory"], got["bus_bytes_per_second"]) == (True, 250 * KiB, 1e8)
    both = got["placement"], got["device_placement"]
    assert got["model_bytes"] > sum(each["pinned_bytes"] + each["expert_region_bytes"] for each in both)
    assert got["bytes_copied_per_token"] > got["flash_bytes_per_token"] > 0
    assert got["tokens_per_second"] <= 1e8 / got["bytes_copied_per_token"]
    assert got["limited_by"] == "bus"
    least = got["minimum_host_memory"]
    assert run("generate", checkpoint, "-p", PROMPT, "-n", 1, *device, "--host-memory", least)[0] == 0
    assert run("generate", checkpoint, "-p", PROMPT, "-n", 1, *device, "--host-memory", least - 1)[0] == 1
    code, _, err = run("plan", checkpoint, "--device", "emulated")
    assert code == 1
    assert "no memory of its own" in err
    short = ask("plan", checkpoint, "--device", "emulated", "--device-memory", "8KiB")
    assert (short["fits"], short["minimum_host_memory"]) == (False, None)
    assert "set device_memory to at least" in short["notes"][0]


def test_plan_takes_pages_off_the_budget(run, ask, checkpoint, quick):
    pages = ("--kv-host-memory", "2MiB")
    least = ask("plan", checkpoint, *pages)["minimum_host_memory"]
    assert least == ask("plan", checkpoint)["minimum_host_memory"] + 2 * 1024 * KiB
    assert run("generate", checkpoint, "-p", PROMPT, "-n", 1, *pages, "--host-memory", least)[0] == 0
    assert run("generate", checkpoint, "-p", PROMPT, "-n", 1, *pages, "--host-memory", least - 1)[0] == 1
