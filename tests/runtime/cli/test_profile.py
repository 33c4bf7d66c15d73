"""``penstock profile``: what is recorded and told, and what is refused before anything runs."""

import json
import shutil
import stat
import sys
from pathlib import Path

import pytest

from penstock.runtime.routing.routes import Routes

TINY = Path(__file__).parents[3] / "examples" / "tiny-moe"
TEXT = "It was a fine day, and the old man went down to the river with his dog. " * 12


@pytest.fixture(autouse=True)
def text(elsewhere):
    """Lies in the folder that the command runs in."""
    Path("text").write_text(TEXT)


@pytest.fixture
def run(run, store):
    """Run ``penstock profile``; exit code, stdout, stderr."""
    options = ("--store", store, "--host-memory", "8MiB")
    return lambda *arguments: run("profile", *arguments, *options)


def test_a_text_is_recorded_and_reported(run):
    code, out, err = run(TINY, "--text", "text", "-n", 64, "--window", 24, "--out", "trace", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["text"], found["model_type"], found["tokens"]) == ("text", "qwen3_moe", 64)
    assert (found["layers"], found["experts"], found["top_k"]) == (6, 96, 4)
    assert set(found["segment_routing"]) == {"1", "4", "16"}
    assert found["cache"][3]["share"] == 0.5
    assert 0 < found["cache"][3]["lru"] < 1
    assert found["out"] == str(Path("trace").resolve())
    assert found["plot"] is None
    routes = Routes.load("trace")
    assert routes.sequences == (24, 24, 16)
    assert all(layer.codes is not None for layer in routes.layers)
    assert stat.S_IMODE(Path("trace").stat().st_mode) == 0o600


def test_by_default_all_of_a_short_text_and_a_table(run):
    code, out, err = run(TINY, "--text", "text")
    assert (code, err) == (0, "")
    assert "text: " in out.splitlines()[0]
    assert "knee: " in out
    assert out.count("model.layers.") == 6


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_plot_is_drawn(run, kind):
    pytest.importorskip("matplotlib")
    code, _, err = run(TINY, "--text", "text", "-n", 200, "--plot", f"plot.{kind}")
    assert code == 0
    assert err == f"written: {Path(f'plot.{kind}').resolve()}\n"
    content = Path(f"plot.{kind}").read_bytes()
    assert content.startswith(b"\x89PNG") if kind == "png" else b"</svg>" in content


# --- refused ---


def refused(got: tuple[int, str, str]) -> str:
    """The one line of an error."""
    code, out, err = got
    assert (code, out) == (1, "")
    assert err.startswith("penstock: error: ")
    assert err.count("\n") == 1
    return err


def test_a_model_without_experts(run, tiny_dense_folder, store):
    before = list(store.iterdir())
    assert "has no experts" in refused(run(tiny_dense_folder, "--text", "text"))
    assert list(store.iterdir()) == before, "it is not packed for that"


def test_a_model_without_a_tokenizer(run, tiny_moe_folder):
    """For this family transformers makes one up, without a single word."""
    assert "no tokenizer that transformers can read" in refused(run(tiny_moe_folder, "--text", "text"))


@pytest.mark.parametrize(("content", "tokens"), [("", 0), ("Too short.", 4)])
def test_a_text_that_is_too_short(run, content, tokens):
    Path("text").write_text(content)
    assert f"text has {tokens} tokens, 16 are needed; name a longer text" in refused(run(TINY, "--text", "text"))


def test_a_text_that_is_shorter_than_asked_for(run):
    error = refused(run(TINY, "--text", "text", "-n", 9999))
    assert "9999 are needed; name a longer text, or ask for --tokens " in error
    tokens = error.split()[-1]
    assert run(TINY, "--text", "text", "-n", tokens)[0] == 0


@pytest.mark.parametrize("name", ["absent", "."])
def test_a_text_that_cannot_be_read(run, name):
    assert f"the text {name} cannot be read" in refused(run(TINY, "--text", name))


def test_a_text_in_another_encoding(run):
    Path("text").write_bytes("Größe".encode("latin-1"))
    assert "no text in UTF-8" in refused(run(TINY, "--text", "text"))


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_what_could_not_be_written(run, option, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("penstock.runtime.loading.load.load_opened", lambda *_, **__: pytest.fail("it ran first"))
    assert "cannot be written" in refused(run(TINY, "--text", "text", option, "no/such/folder/file.svg"))


def test_a_plot_of_no_kind(run):
    pytest.importorskip("matplotlib")
    assert "no kind of picture" in refused(run(TINY, "--text", "text", "--plot", "plot.xyz"))


def test_a_plot_without_matplotlib(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    assert "pip install 'penstock[plot]'" in refused(run(TINY, "--text", "text", "--plot", "plot.svg"))


def test_more_tokens_at_a_time_than_the_model_has_positions(run):
    code, _, err = run(TINY, "--text", "text", "--window", 1025)
    assert code == 2
    assert "1024 positions" in err


def test_a_folder_that_is_no_model(run, tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()
    refused(run(tmp_path / "model", "--text", "text"))
