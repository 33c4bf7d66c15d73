"""Measuring runs on a small model: no time is believed here, but what else the scripts say must be true."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock

from .conftest import TINY, Run

TEXT = TINY.parent / "passage.txt"


@pytest.fixture
def report(run: Run, tmp_path: Path) -> Any:
    """Run a script; what it wrote to --json."""

    def report(name: str, *arguments: object) -> dict[str, Any]:
        file = tmp_path / "report.json"
        run(name, *arguments, "--json", file)
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    return report


def test_decode_gives_the_bits_of_transformers(run: Run, store: Path) -> None:
    own, ram = (
        json.loads(run("decode.py", mode, TINY, 3, "--prompt", 8, *more).splitlines()[-1])
        for mode, more in (("penstock", ["--host-memory", "6MiB", "--store", store]), ("ram", []))
    )
    assert own["digests"] == ram["digests"]
    assert len(own["digests"]) == own["tokens"] == 3
    assert own["flash_bytes_per_token"] > 0


def test_several_sequences_read_no_more_than_each_for_itself(report: Any, store: Path) -> None:
    (found,) = report(
        "throughput.py", TINY, "--sequences", 2, "--host-memory", "8MiB", "--rounds", 1, "--steps", 3, "--store", store
    )["rounds"]
    assert found.keys() == {"one", "2 rows", "2 threads"}
    one, rows = found["one"], found["2 rows"]
    assert one["union_bytes_per_step"] == 6 * 4 * 108 * 1024, "four experts in each of six layers"
    assert one["union_bytes_per_step"] < rows["union_bytes_per_step"] <= 2 * one["union_bytes_per_step"]
    for part in (one, rows):
        assert part["lacked_bytes_per_step"] <= part["union_bytes_per_step"]
    assert found["2 threads"]["bytes_per_step"] > 0


def test_everything_in_memory_reads_nothing_and_gives_the_same_bits(report: Any, store: Path) -> None:
    found = report("in_memory.py", TINY, "--tokens", 3, "--rounds", 1, "--store", store)
    assert found["equal"] == found["compared"] == 6
    assert found["flash_bytes_read"] == 0


def test_a_device_is_measured_beside_its_limits(report: Any, store: Path) -> None:
    budgets = ("--device-memory", "5MiB", "--host-memory", "6MiB")
    (found,) = report(
        "device.py", TINY, "--device", "emulated:4GB", *budgets, "--tokens", 3, "--rounds", 1, "--store", store
    )["rounds"]
    assert found["compute"]["bytes_copied"] == 0, "alone, everything is on the device"
    assert found["penstock"]["bytes_copied"] > 0
    assert 0 < found["bus"] < 4e9
    assert found["drive"] > 0


def test_a_simulated_run_reads_what_a_real_one_does(report: Any) -> None:
    """Without guesses, which take the drive's idle time: what is read then depends on what else this machine does."""
    budgets = "--host-memory", "6MiB", "--calibrate", "4MiB"
    options = *budgets, "--tokens", 12, "--rounds", 1, "--set", "experts_prefetch=off"
    (run,) = report("simulated.py", TINY, *options)["rounds"]["6MiB"]
    assert 0 < run["hit_ratio"] < 1
    assert run["simulated_hit_ratio"] == pytest.approx(run["hit_ratio"], abs=0.05)
    assert run["simulated_flash_bytes_per_token"] == pytest.approx(run["flash_bytes_per_token"], rel=0.1)


@pytest.mark.parametrize("kind", ["penstock", "transformers"])
def test_decoding_behind_a_long_context(run: Run, store: Path, kind: str) -> None:
    options = ["--set", "kv_host_memory=600KiB", f"store={store}"] if kind == "penstock" else []
    out = run("long_decode.py", kind, TINY, "--context", 700, "--tokens", 2, *options)
    found = json.loads(out.splitlines()[-1])
    assert found["tokens_per_second"] > 0
    assert (found.get("kv_bytes_per_token", 0) > 0) == (kind == "penstock"), "a part of it lies on flash"


def test_windows_of_a_long_generation(report: Any, store: Path) -> None:
    options = ("--host-memory", "8MiB", "--tokens", 16, "--request", 8, "--window", 8, "--store", store)
    found = report("endurance.py", TINY, *options)
    assert len(found["speeds"]) == len(found["resident"]) == 2
    assert all(peak >= resident for peak, resident in zip(found["peaks"], found["resident"], strict=True))


def test_no_eviction_policy_beats_the_optimum(report: Any, tmp_path: Path, store: Path) -> None:
    with penstock.load(TINY, store=store, host_memory="8MiB") as model:
        with model.penstock.profile("tokens") as recording:
            model.generate(torch.arange(10, 20)[None], max_new_tokens=40, min_new_tokens=40, do_sample=False)
        recording.routes().save(tmp_path / "trace")
    (ratios,) = report("eviction.py", tmp_path / "trace")["hit_ratios"].values()
    best = ratios.pop("belady")
    shared = {name: found for name, found in ratios.items() if "even" not in name}
    assert len(shared) > 8
    for found in shared.values():
        assert all(ratio <= most for ratio, most in zip(found, best, strict=True))


def test_quality_of_kv_formats(report: Any) -> None:
    formats = report(
        "kv_formats.py", TINY, "--text", TEXT, "--tokens", 512, "--context", 512, "--first", 0, "--recent", 0
    )["formats"]
    found = {each["format"]: each for each in formats}
    assert found["as-is"]["kl_divergence"] == 0
    assert 0 < found["int8"]["kl_divergence"] < found["int4"]["kl_divergence"] < 0.1
    assert found["int4"]["bits"] < found["int8"]["bits"] < 16


def test_quality_of_fixed_budgets(report: Any) -> None:
    text = ("--text", TEXT, "--tokens", 512, "--context", 512, "--prompt", 256, "--step", 16, "--page", 16)
    rows = report("kv_modes.py", TINY, *text, "--budgets", "50%")["modes"]
    exact, *others = rows
    assert exact["kl_divergence"] == 0
    assert {row["mode"] for row in others} > {"window", "Quest"}
    assert all(row["kl_divergence"] > 0 for row in others)


def test_certificates_hold(report: Any) -> None:
    few = ("--windows", 1, "--per-window", 1, "--steps", 1, "--dim", 32)
    found = report("certified.py", "--model", TINY, "--text", TEXT, *few)
    assert found["rows"] == 240
    assert all(case["outside"] == case["broken"] == 0 for case in found["cases"])


def test_time_to_the_first_token_of_a_stored_prompt(run: Run, store: Path) -> None:
    reports = [
        json.loads(run("prefix.py", TINY, store, "--tokens", 600, "--host-memory", "8MiB", "--one", "hit"))
        for _ in range(3)
    ]
    assert [each["restored"] for each in reports] == [0, 0, 512]
    assert len({each["token"] for each in reports}) == 1


def test_the_drive_alone(run: Run, store: Path) -> None:
    with penstock.load(TINY, store=store, host_memory="8MiB") as model:
        bundle = model.penstock.bundle
    assert re.fullmatch(
        r"alone [\d.]+ GB/s, while memory is read [\d.]+ GB/s\n", run("drive.py", bundle, "--rounds", 1)
    )
