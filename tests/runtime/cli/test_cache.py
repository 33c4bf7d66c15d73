"""``penstock cache`` on the example model, from the shell's side."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from penstock.runtime.cli.main import main
from penstock.runtime.prefixes import prefix, states
from tests.fuzz.architectures import config_of

MODEL = str(Path(__file__).parents[3] / "examples" / "tiny-moe")
TEXT = "In the beginning the valley was dry, and nobody knew how high the water would stand one day. " * 20


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run in this process, with a store of its own; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["cache", *arguments, "--store", str(tmp_path / "store")])
        return code, *capsys.readouterr()

    return run


def entries(run) -> list[dict[str, object]]:
    return json.loads(run("ls", "--json")[1])["entries"]


def test_a_prompt_is_saved_listed_checked_and_removed(run, tmp_path):
    (tmp_path / "prompt.txt").write_text(TEXT)
    code, out, err = run("save", MODEL, "--text", "prompt.txt", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["tokens"] == report["computed"] == report["prompt_tokens"] // 256 * 256 > 0
    assert report["bytes"] > 0

    left = report["prompt_tokens"] - report["tokens"]
    said = f"stored already; whole blocks of 256 are, the last {left} are computed each time"
    assert said in run("save", MODEL, "-p", TEXT)[1]
    (entry,) = entries(run)
    assert (entry["tokens"], entry["bytes"], entry["saved"]) == (report["tokens"], report["bytes"], True)

    longer = json.loads(run("save", MODEL, "-p", TEXT + TEXT, "--json")[1])
    assert longer["computed"] == longer["tokens"] - report["tokens"]  # the rest was restored
    assert len(entries(run)) == 2

    plain, shown = run("ls", "--no-text")[1], run("ls")[1]
    assert "In the beginning" in shown
    assert "beginning" not in plain
    assert "tiny-moe:as-is" in plain
    assert run("verify")[0] == 0

    file = tmp_path / "store" / "prefix" / str(entry["file"])
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    code, out, err = run("verify")
    assert (code, out) == (1, "")
    assert str(file) in err
    assert json.loads(run("verify", "--json")[1])["intact"] is False

    assert json.loads(run("prune", "--older-than", "1h", "--json")[1])["freed"] == 0
    assert json.loads(run("prune", "--model", str(entry["model"]), "--json")[1])["freed"] > 0
    assert entries(run) == []


def test_a_namespace_is_apart(run):
    run("save", MODEL, "-p", TEXT)
    report = json.loads(run("save", MODEL, "-p", TEXT, "--kv-namespace", "me", "--json")[1])
    assert report["computed"] == report["tokens"]
    assert len(entries(run)) == 2


def test_generate_finds_what_was_saved(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prefix, "worth_reading", lambda *_, **__: True)
    saved = json.loads(run("save", MODEL, "-p", TEXT, "--json")[1])
    command = ["generate", MODEL, "-p", TEXT + "Then", "-n", "4", "--json", "--store", str(tmp_path / "store")]
    texts = []
    for options, restored in ((["--kv-prefix", "1GiB"], saved["tokens"]), ([], 0)):
        assert main([*command, *options]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["prefix_tokens_restored"] == restored
        texts.append(report["text"])
    assert texts[0] == texts[1]


def test_what_cannot_be_is_said(run):
    code, _, err = run("save", MODEL, "-p", "short")
    assert code == 1
    assert "less than a block" in err
    code, _, err = run("save", MODEL, "-p", TEXT, "--kv-prefix", "10KiB")
    assert code == 1
    assert "no room" in err
    code, _, err = run("save", MODEL, "-p", TEXT * 3)
    assert code == 1
    assert "has 1024 positions; store a shorter one" in err
    assert entries(run) == []
    assert run("save", MODEL)[0] == run("prune")[0] == run("prune", "--older-than", "soon")[0] == 2


def test_a_model_that_begins_anew_is_told_so_before_anything_is_computed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(states, "BIT_TRIALS", {})
    config = config_of("jamba", {})
    config.vocab_size = AutoConfig.from_pretrained(MODEL).vocab_size
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "jamba")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path / "jamba")
    code, _, err = run("save", str(tmp_path / "jamba"), "-p", TEXT[:800])
    assert code != 0
    assert "does not go on from its recurrent state" in err
    assert entries(run) == []
