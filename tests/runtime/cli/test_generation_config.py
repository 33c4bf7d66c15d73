"""``penstock generate`` with the small files of strangers: they multiply no work, and what is wrong is one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.prompts import PROMPT

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def own(checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    shutil.copytree(checkpoint, folder)
    return folder


def change(folder: Path, name: str, changes: dict[str, Any]) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_beams": 100_000},
        {"num_beams": 100_000, "num_return_sequences": 100_000},
        {"num_beams": 4, "num_beam_groups": 4},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"prompt_lookup_num_tokens": 10**9},
    ],
)
def test_a_generation_config_multiplies_nothing(ask, own, changes):
    wanted = ask("generate", own, "-p", PROMPT, "-n", 6)["token_ids"]
    change(own, "generation_config.json", changes)
    assert ask("generate", own, "-p", PROMPT, "-n", 6)["token_ids"] == wanted


@pytest.mark.parametrize(
    "changes",
    [
        {"num_return_sequences": 100_000},
        {"suppress_tokens": [[1]]},
        {"eos_token_id": "x"},
        {"bad_words_ids": [["x"]]},
        {"sequence_bias": 5},
        {"cache_implementation": "none such"},
        {"dola_layers": "high"},
        {"force_words_ids": [[5]]},
        {"guidance_scale": "x"},
    ],
)
def test_a_generation_config_that_cannot_be_used_is_one_line(run, own, changes):
    change(own, "generation_config.json", changes)
    code, _, err = run("generate", own, "-p", PROMPT, "-n", 4)
    assert code == 1
    assert err.count("\n") == 1
    assert err.startswith("penstock: error: ")
    assert "generation_config.json" in err


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", ["[]", "", "[" * 100_000, '"x"'])
def test_small_files_of_another_kind_are_one_line(run, own, name, content):
    (own / name).write_text(content)
    code, _, err = run("generate", own, "-p", PROMPT, "-n", 4)
    assert (code, err.count("\n")) == (1, 1)
    assert name in err


@pytest.mark.parametrize(
    "content", ["[]", '{"model": 5}', '{"model": {"type": "BPE", "vocab": {}, "merges": [["a"]]}}']
)
def test_a_tokenizer_that_is_none_is_one_line(run, own, content):
    (own / "tokenizer.json").write_text(content)
    code, _, err = run("generate", own, "-p", PROMPT, "-n", 4)
    assert (code, err.count("\n")) == (1, 1)
    assert "has no tokenizer that transformers can read" in err


@pytest.mark.parametrize("length", ["x", [1], {}])
def test_a_tokenizer_that_fails_on_a_text_is_one_line(run, own, length):
    change(own, "tokenizer_config.json", {"model_max_length": length})
    code, _, err = run("generate", own, "-p", PROMPT, "-n", 4)
    assert (code, err.count("\n")) == (1, 1)
    assert "cannot read the text" in err


def test_numbers_that_are_none_are_said(run, own):
    tensors = load_file(own / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
    save_file(tensors, own / "model.safetensors", {"format": "pt"})
    code, out, err = run("generate", own, "-p", PROMPT, "-n", 4)
    assert (code, out.strip()) == (1, "")
    assert "computes numbers that are none (NaN)" in err
