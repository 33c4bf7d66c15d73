"""``penstock eval``: its figures are those of transformers computed directly, and what is refused."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

import penstock
from penstock.runtime.cli import eval as command
from penstock.runtime.cli.options import SourceOptions
from penstock.runtime.cli.text import beginning
from penstock.runtime.config.config import Config
from penstock.runtime.config.settings import Io, Weights
from penstock.runtime.loading import load
from penstock.tiering.errors import EvaluationError

TINY = Path(__file__).parents[3] / "examples" / "tiny-moe"
TEXT = "It was a fine day, and the old man went down to the river with his dog. " * 4


@pytest.fixture(autouse=True)
def text(elsewhere):
    """Lies in the folder that the command runs in."""
    Path("text").write_text(TEXT)


@pytest.fixture
def run(run, store):
    """Run ``penstock eval``; exit code, stdout, stderr."""
    options = ("--store", store, "--host-memory", "10MiB")
    return lambda *arguments: run("eval", *arguments, *options)


@pytest.fixture
def float32(monkeypatch):
    """Have the model tested in float32 beside the original in bfloat16; the dtypes that were loaded."""
    loaded = []

    def load_opened(opened, config, progress):
        loaded.append(torch.bfloat16 if not loaded else torch.float32)
        return penstock.load(opened.folder, config=config, dtype=loaded[-1], progress=progress)

    monkeypatch.setattr(load, "load_opened", load_opened)
    monkeypatch.setattr(command, "_tested", lambda config, *_: {"float32": config})
    return loaded


@torch.no_grad()
def directly(dtype: torch.dtype, size: int, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Transformers' own logits [tokens, vocabulary] of the text in windows of ``size``, and the tokens that follow."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=dtype, experts_implementation="eager")
    ids = AutoTokenizer.from_pretrained(TINY)(TEXT, return_tensors="pt")["input_ids"][:, :most]
    parts = [part for part in ids.split(size, dim=1) if part.shape[1] > 1]
    return torch.cat([model(part).logits[0, :-1] for part in parts]), torch.cat([part[0, 1:] for part in parts])


def test_the_original_is_transformers_and_runs_once(run, monkeypatch):
    loads, real = [], load.load_opened
    monkeypatch.setattr(load, "load_opened", lambda *given: loads.append(1) or real(*given))
    code, out, err = run(TINY, "--text", "text", "-n", 50, "--context", 20, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    logits, targets = directly(torch.bfloat16, 20, 50)
    assert found["perplexity"] == pytest.approx(math.exp(functional.cross_entropy(logits.double(), targets)), rel=1e-9)
    assert (found["kl_divergence"], found["top1_agreement"], found["tokens"]) == (0.0, 1.0, 47)
    assert (found["windows"], found["context"], found["format"]) == (3, 20, "as-is")
    assert (found["size_ratio"], found["perplexity_change"]) == (1.0, 0.0)
    assert found["bytes"] > 14e6
    assert "formats" not in found
    assert len(loads) == 1


def test_another_model_beside_the_original(run, float32):
    code, out, err = run(TINY, "--text", "text", "-n", 60, "--context", 25, "--compare", "float32", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    original, tested = found["formats"]
    assert found["original"] == original
    assert (original["format"], original["kl_divergence"]) == ("as-is", 0.0)
    (logits, targets), (other, _) = directly(torch.bfloat16, 25, 60), directly(torch.float32, 25, 60)
    p, q = logits.double().log_softmax(-1), other.double().log_softmax(-1)
    assert tested["perplexity"] == pytest.approx(math.exp(functional.nll_loss(q, targets)), rel=1e-6)
    assert tested["perplexity_change"] == pytest.approx(tested["perplexity"] / original["perplexity"] - 1)
    expected = functional.kl_div(q, p, log_target=True, reduction="batchmean").item()
    assert tested["kl_divergence"] == pytest.approx(expected, rel=1e-4)
    assert 1e-6 < expected < 1e-2
    assert tested["top1_agreement"] == (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    assert tested["size_ratio"] == pytest.approx(2, rel=0.01)
    assert float32 == [torch.bfloat16, torch.float32]


def test_a_table(run, float32):
    code, out, err = run(TINY, "--text", "text", "-n", 40)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "text: 39 tokens predicted, in 1 windows of 512"
    assert lines[1].split()[:2] == ["weights", "bytes"]
    rows = {line.split()[0]: line.split() for line in lines[3:]}
    assert list(rows) == ["as-is", "float32"]
    assert rows["as-is"][3] == "100.0%"
    assert rows["as-is"][5:8] == ["+0.00%", "0.00000", "100.00%"]


def test_the_original_alone_may_be_compared(run):
    code, out, _ = run(TINY, "--text", "text", "-n", 20, "--compare", "as-is", "--json")
    assert code == 0
    found = json.loads(out)
    assert [row["format"] for row in found["formats"]] == ["as-is"]
    assert found["tokens"] == 19


def test_a_bundle_is_its_own_original(run, store):
    with penstock.load(TINY, store=store, host_memory="10MiB") as model:
        bundle = model.penstock.bundle
    code, out, _ = run(bundle, "--text", "text", "-n", 20, "--json")
    assert code == 0
    assert json.loads(out)["kl_divergence"] == 0.0


def test_all_that_is_said_of_the_weights_is_tested(monkeypatch):
    class Rules(Weights):
        experts: str = "as-is"

    monkeypatch.setattr(command, "Weights", Rules)
    original = Config().model_copy(update={"weights": Rules()})
    config = Config().model_copy(update={"weights": Rules(experts="coarse")})
    assert command._tested(config, original, None) == {"auto experts=coarse": config}
    faster = original.model_copy(update={"io": Io(depth=3)})
    assert command._tested(faster, original, None) == {}, "other settings change no bit"


def test_infinite_figures_are_no_number():
    assert command._finite(math.inf) is None
    assert command._change(3.0, {"perplexity": None}) is None
    assert command._change(3.0, {"perplexity": 2.0}) == 0.5
    assert command._cell(None, ".3f") == "infinite"


def test_every_window_begins_as_the_tokenizer_begins_a_text():
    def tokenizer(special, begin):
        return type("Tokenizer", (), {"bos_token_id": begin, "__call__": lambda *_: {"input_ids": special}})()

    assert beginning(tokenizer([1], 1)) == [1]
    assert beginning(tokenizer([1, 2], 1)) == [1]
    assert beginning(tokenizer([2], 1)) == [], "a token that ends"
    assert beginning(tokenizer([], None)) == []
    assert command._in_windows([5, 6, 7], [1], 3, "text") == [[1, 5, 6], [1, 7]]
    assert command._in_windows([5], [1], 3, "text") == [[1, 5]]


# --- refused ---


def refused(got: tuple[int, str, str]) -> str:
    """The one line of an error."""
    code, out, err = got
    assert (code, out) == (1, "")
    assert err.startswith("penstock: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(("content", "tokens"), [("", 0), ("a", 1)])
def test_a_text_that_is_too_short(run, content, tokens):
    Path("text").write_text(content)
    assert f"text has {tokens} tokens, 2 are needed; name a longer text" in refused(run(TINY, "--text", "text"))


@pytest.mark.parametrize("name", ["absent", "."])
def test_a_text_that_cannot_be_read(run, name):
    assert f"the text {name} cannot be read" in refused(run(TINY, "--text", name))


def test_a_text_in_another_encoding(run):
    Path("text").write_bytes("Größe".encode("latin-1"))
    assert "no text in UTF-8" in refused(run(TINY, "--text", "text"))


def test_a_model_without_a_tokenizer(run, tiny_moe_folder):
    assert "no tokenizer that transformers can read" in refused(run(tiny_moe_folder, "--text", "text"))


def test_a_model_or_format_that_is_not(run):
    assert "there is no folder absent" in refused(run("absent", "--text", "text"))
    assert 'weights_format = "int9"' in refused(run(TINY, "--text", "text", "--compare", "as-is,int9"))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--context", 1025, "1024 positions"), ("--context", 1, ""), ("--tokens", 1, ""), ("--compare", " ,", "formats")],
)
def test_bad_usage(run, option, value, said):
    code, _, err = run(TINY, "--text", "text", option, value)
    assert code == 2
    assert said in err


def test_a_bundle_without_its_original(tmp_path, monkeypatch):
    (tmp_path / "manifest.json").touch()
    source, held = SourceOptions(model=str(tmp_path)), SimpleNamespace(codec="as-is")
    monkeypatch.setattr(command, "read_manifest", lambda _: held)
    command._check_original(source, {})
    with pytest.raises(EvaluationError, match="as-is only; name the checkpoint"):
        command._check_original(source, {"int8": Config()})
    held.codec = "int8"
    with pytest.raises(EvaluationError, match=r"holds int8 weights.*--weights-format int8"):
        command._check_original(source, {})
