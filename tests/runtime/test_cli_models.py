"""The command line with a model: what is printed, that it is right, and what Ctrl-C and damage lead to."""

import contextlib
import io
import json
import os
import pty
import signal
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TextStreamer

from penstock.kernels.trial import ReadRate
from penstock.runtime.cli.main import main
from penstock.tiering.store.reader import Bundle
from penstock.tiering.store.writer import BundleWriter
from penstock.tiering.units import PAGE, GiB, KiB, MiB
from tests.routes import made_up
from tests.timings import TIMINGS
from tests.tiny_models import save_tiny
from tests.traces import load, spans

PROMPT = "w5 w6 w7 w8"
IDS = [5, 6, 7, 8]
LITTLE = ("--host-memory", "300KiB")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random Qwen3-MoE of 648 KiB, with a tokenizer of which every word is one token."""
    folder = save_tiny("qwen3_moe", tmp_path_factory.mktemp("cli") / "moe", torch.float32)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, 320)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="w3"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A store and a home of the test's own; one thread, since tiny products on a busy machine only wait for others."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick(monkeypatch):
    """Measurements that take no time."""
    monkeypatch.setattr("penstock.runtime.drives.drive_speed", lambda *_, **__: 1e9)
    rates = [ReadRate(size, depth, 1e9) for size in (128 * KiB, MiB) for depth in (1, 2, 4)]
    monkeypatch.setattr("penstock.runtime.drives.drive_rates", lambda *_: rates)
    monkeypatch.setattr("penstock.runtime.reference.timings_here", lambda *_: TIMINGS)


@pytest.fixture
def run(capsys):
    """Run in this process; exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def ask(run):
    """Run with ``--json``; the object."""

    def ask(*arguments: object) -> dict:
        code, out, err = run(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return ask


# --- generate ---


def test_generate_continues_as_transformers_does(ask, checkpoint):
    got = ask("generate", checkpoint, "-p", PROMPT, "-n", 12, *LITTLE)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    expected = model.generate(torch.tensor([IDS]), max_new_tokens=12, do_sample=False)[0, 4:].tolist()
    assert got["token_ids"] == expected
    assert got["text"] == " ".join(f"w{token}" for token in expected if token > 2)
    assert got["prompt_tokens"] == 4
    assert got["tokens_per_second"] > 0
    assert got["time_to_first_token_s"] > 0
    assert got["flash_bytes_read"] > 0
    assert 0 <= got["hit_ratio"] < 1
    assert got["stall_s"] >= 0
    assert 0 < got["host_bytes"] <= got["host_budget"] == 300 * 1024
    assert got["peak_rss_bytes"] > 1 << 20


def test_generate_streams_the_text_and_nothing_else(run, ask, checkpoint, monkeypatch):
    text = ask("generate", checkpoint, "-p", PROMPT, "-n", 12)["text"]
    pieces = []
    real = TextStreamer.on_finalized_text
    monkeypatch.setattr(
        TextStreamer, "on_finalized_text", lambda self, text, **more: (pieces.append(text), real(self, text, **more))
    )
    assert run("generate", checkpoint, "-p", PROMPT, "-n", 12) == (0, text + "\n", "")
    assert len([piece for piece in pieces if piece]) > 3


def test_generate_reads_stdin(ask, checkpoint, monkeypatch):
    expected = ask("generate", checkpoint, "-p", PROMPT, "-n", 4)
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    assert ask("generate", checkpoint, "-p", "-", "-n", 4)["token_ids"] == expected["token_ids"]


def test_generate_samples_repeatably(ask, checkpoint):
    sample = ("generate", checkpoint, "-p", PROMPT, "-n", 8, "--temperature", 2)
    one, same, other = (ask(*sample, "--seed", seed)["token_ids"] for seed in (1, 1, 2))
    assert one == same != other
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    # Nothing is cut off unless asked for: transformers would take the 50 likeliest.
    wild = model.generate(torch.tensor([IDS]), max_new_tokens=8, do_sample=True, temperature=2.0, top_k=0, top_p=1.0)
    assert one == wild[0, 4:].tolist()
    greedy = ask("generate", checkpoint, "-p", PROMPT, "-n", 8)["token_ids"]
    assert ask(*sample, "--seed", 1, "--top-k", 1)["token_ids"] == greedy
    assert ask(*sample, "--seed", 1, "--top-p", 1e-9)["token_ids"] == greedy


def test_generate_searches_beams(run, ask, checkpoint):
    got = ask("generate", checkpoint, "-p", PROMPT, "-n", 6, "--beams", 3)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    expected = model.generate(torch.tensor([IDS]), max_new_tokens=6, do_sample=False, num_beams=3)[0, 4:].tolist()
    assert got["token_ids"] == expected
    assert run("generate", checkpoint, "-p", PROMPT, "-n", 6, "--beams", 3)[1] == got["text"] + "\n"


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_done(run, checkpoint, tmp_path):
    code, out, err = run("generate", checkpoint, "-p", "w5 " * 257)
    assert (code, out) == (1, "")
    assert "257 tokens" in err
    assert "256 positions" in err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_prompt_begins_a_text(ask, checkpoint):
    assert ask("generate", checkpoint, "-p", "", "-n", 2)["prompt_tokens"] == 1


def test_a_model_without_tokenizer_is_named(run, tmp_path):
    code, _, err = run("generate", save_tiny("llama", tmp_path / "bare"), "-p", "x")
    assert code == 1
    assert "no tokenizer" in err


def test_too_small_a_budget_says_the_least(run, checkpoint):
    code, out, err = run("generate", checkpoint, "-p", PROMPT, "--host-memory", "50KiB")
    assert (code, out) == (1, "")
    assert err.startswith("penstock: error: host_memory is 50.00 KiB")
    assert "at least" in err


def test_ctrl_c_while_generating(run, checkpoint, monkeypatch):
    before = set(threading.enumerate())
    with monkeypatch.context() as patch:
        patch.setattr(TextStreamer, "put", lambda *_: signal.raise_signal(signal.SIGINT))
        code, _, err = run("generate", checkpoint, "-p", PROMPT)
    assert (code, err) == (130, "penstock: interrupted\n")
    assert set(threading.enumerate()) <= before
    assert run("generate", checkpoint, "-p", PROMPT, "-n", 2)[0] == 0


# --- pack, verify, inspect ---


def test_pack_once_then_use_the_bundle_by_either_name(run, ask, checkpoint):
    packed = ask("pack", checkpoint)
    bundle = packed["bundle"]
    assert ask("pack", checkpoint)["bundle"] == ask("pack", bundle)["bundle"] == bundle
    assert run("pack", checkpoint)[1].startswith(bundle)
    for name in (checkpoint, bundle):
        assert ask("verify", name) == {
            "bundle": bundle,
            "intact": True,
            "blocks": packed["blocks"],
            "bytes": packed["bytes"],
            "damaged": [],
        }
        shown = ask("inspect", name)
        assert shown["bytes"] == packed["bytes"] == sum(kind["bytes"] for kind in shown["kinds"].values())
        assert shown["kinds"]["expert"]["blocks"] == 16
        assert len(shown["blocks"]) == packed["blocks"]
        assert "model.layers.1.mlp.experts" in run("inspect", name)[1]
    ids = [ask("generate", name, "-p", PROMPT, "-n", 3)["token_ids"] for name in (checkpoint, bundle)]
    assert ids[0] == ids[1]


def test_a_flipped_bit_is_found_and_named(run, ask, checkpoint):
    folder = ask("pack", checkpoint)["bundle"]
    with Bundle.open(folder) as bundle:
        block = bundle.manifest.blocks[5]
    with open(f"{folder}/data-00000.bin", "r+b") as file:
        file.seek(block.extent.offset)
        byte = file.read(1)[0]
        file.seek(block.extent.offset)
        file.write(bytes([byte ^ 1]))
    code, out, err = run("verify", folder)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    for part in ("penstock: error: ", str(block.id), str(block.extent.offset), "data-00000.bin"):
        assert part in err
    code, out, err = run("verify", folder, "--json")
    assert (code, err) == (1, "")
    assert json.loads(out)["intact"] is False


def test_what_is_not_packed_is_not_verified(run, checkpoint, tmp_path):
    for command in ("verify", "inspect"):
        code, _, err = run(command, checkpoint)
        assert code == 1
        assert "penstock pack" in err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_packing_can_be_resumed(run, ask, checkpoint, monkeypatch):
    real, calls = BundleWriter.append, []

    def append(self, pieces):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        real(self, pieces)

    monkeypatch.setattr(BundleWriter, "append", append)
    code, out, err = run("pack", checkpoint)
    assert (code, out) == (130, "")
    assert err.count("\n") == 1
    assert "run the same again" in err
    ask("pack", checkpoint)
    assert ask("verify", checkpoint)["intact"]


def test_full_flash(run, checkpoint):
    code, _, err = run("pack", checkpoint, "--flash-limit", "10KiB")
    assert code == 1
    assert err.startswith("penstock: error: packing needs")


# --- plan, bench ---


def test_plan_says_the_least_budget_that_works(run, ask, checkpoint, quick):
    got = ask("plan", checkpoint, *LITTLE)
    assert got["fits"] is True
    assert got["limited_by"] == "flash"
    bound = 1e9 / got["flash_bytes_per_token"]  # computing beside it makes the drive slower, waiting lets it idle
    assert 0.5 * bound < got["tokens_per_second"] < bound
    assert 0 < ask("plan", checkpoint, "--host-memory", "450KiB")["hit_ratio"] < 1
    assert got["time_to_first_token_s"] > 1 / got["tokens_per_second"]
    least = got["minimum_host_memory"]
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
        for changed in ("flash_needed", "flash_free"):
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
    monkeypatch.setattr("penstock.runtime.drives.drive_under", str)  # as if each folder were a drive
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
    assert "gains nothing" in out.replace("\n", " ")
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


# --- traces ---


def test_generate_and_bench_write_traces(run, ask, checkpoint, quick, tmp_path):
    assert run("generate", checkpoint, "-p", PROMPT, "-n", 3, "--trace", "one.json", *LITTLE)[0] == 0
    forwards = spans(load(tmp_path / "one.json"), "forward")
    assert [span["args"]["tokens"] for span in forwards] == [len(IDS), 1, 1]
    ask("bench", checkpoint, "-n", 2, "--trace", tmp_path / "two.json", *LITTLE)
    forwards = spans(load(tmp_path / "two.json"), "forward")
    assert [span["args"]["tokens"] for span in forwards] == [64, 1, 1]


def test_a_trace_that_cannot_be_written_is_refused_before_anything_is_done(run, checkpoint, tmp_path):
    for command in (("generate", checkpoint, "-p", PROMPT), ("bench", checkpoint)):
        code, out, err = run(*command, "--trace", "absent/run.json")
        assert (code, out) == (1, "")
        assert err.startswith("penstock: error: a trace cannot be written to absent/run.json: No such file")
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_a_trace(run, checkpoint, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(TextStreamer, "put", lambda *_: signal.raise_signal(signal.SIGINT))
        assert run("generate", checkpoint, "-p", PROMPT, "--trace", "run.json")[0] == 130
    load(tmp_path / "run.json")


# --- terminals and pipes ---


def test_progress_is_for_terminals(checkpoint, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    with monkeypatch.context() as patch, os.fdopen(theirs, "w") as terminal:
        patch.setattr(sys, "stderr", terminal)
        assert main(["pack", str(checkpoint)]) == 0
    screen = b""
    with contextlib.suppress(OSError):  # Linux's way of saying that the other end is closed
        while piece := os.read(ours, 65536):
            screen += piece
    os.close(ours)
    assert b"packing" in screen
    assert "packing" not in capsys.readouterr().out
