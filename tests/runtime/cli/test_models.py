"""The command line with a model: what is printed, that it is right, and what Ctrl-C and damage lead to."""

import contextlib
import io
import json
import os
import pty
import signal
import sys
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

from penstock.runtime.cli.main import main
from penstock.runtime.cli.writing import Streamer
from penstock.tiering.store.bundle.reader import Bundle
from penstock.tiering.store.bundle.writer import BundleWriter
from tests.support.prompts import IDS, PROMPT
from tests.support.tiny_models import save_tiny
from tests.support.traces import load, spans

LITTLE = ("--host-memory", "300KiB")

pytestmark = pytest.mark.usefixtures("elsewhere")


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
    real = Streamer.show
    monkeypatch.setattr(Streamer, "show", lambda self, text: (pieces.append(text), real(self, text)))
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
        patch.setattr(Streamer, "put", lambda *_: signal.raise_signal(signal.SIGINT))
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
            "deep": False,
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
        patch.setattr(Streamer, "put", lambda *_: signal.raise_signal(signal.SIGINT))
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
