"""``penstock.tokenizer``: the same one, wherever a model comes from; and models that the hub does not give."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import _http

import penstock
from penstock.runtime.loading.opening import ModelSource, read_config
from penstock.tiering.errors import CheckpointError, ConfigError
from tests.support.chat_models import save_chat_model
from tests.support.gguf_files import mixed, write
from tests.support.tiny_models import save_tiny

TEXT = "the rest is in the note"
pytestmark = pytest.mark.usefixtures("elsewhere")


def test_of_a_checkpoint_its_bundle_and_the_loaded_model(tmp_path: Path, store: Path) -> None:
    folder = save_chat_model(tmp_path / "chatty")
    with penstock.load(folder, store=store, host_memory="1GiB") as model:
        found = [penstock.tokenizer(each) for each in (folder, str(folder), model, model.penstock.bundle)]
        assert repr(model.penstock).startswith("<penstock handle of LlamaForCausalLM, open: ")
    assert "closed" in repr(model.penstock)
    ids = found[0](TEXT)["input_ids"]
    assert len(ids) > 5
    for each in found:
        assert each(TEXT)["input_ids"] == ids
        assert each.chat_template == found[0].chat_template


def test_of_a_gguf_file_and_of_its_folder(tmp_path: Path, store: Path) -> None:
    file = write(tmp_path / "model.gguf", "llama", mixed, vocabulary="gpt2")
    (tmp_path / "mmproj-model.gguf").write_bytes(file.read_bytes())
    found = penstock.tokenizer(file)
    ids = found(TEXT)["input_ids"]
    assert found.decode(ids, skip_special_tokens=True).strip() == TEXT
    with penstock.load(tmp_path, store=store, host_memory="1GiB") as model:
        assert penstock.tokenizer(model)(TEXT)["input_ids"] == ids
        assert model(torch.tensor([ids])).logits.shape[1] == len(ids)
    assert penstock.tokenizer(tmp_path)(TEXT)["input_ids"] == ids
    (tmp_path / "other.gguf").write_bytes(file.read_bytes())
    with pytest.raises(
        CheckpointError, match=r"several GGUF files; name the one that is meant: model.gguf \(.*\), other"
    ):
        penstock.load(tmp_path, store=store)


def test_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer that transformers can read"):
        penstock.tokenizer(save_tiny("llama", tmp_path / "bare"))
    from torch import nn

    with pytest.raises(ConfigError, match="no model of penstock"):
        penstock.tokenizer(nn.Linear(1, 1))


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(_: Any) -> None:
        raise AssertionError("the hub is asked again and again")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(_http.time, "sleep", sleep)
    with pytest.raises(CheckpointError, match="cannot be reached, and nothing of that name was fetched before"):
        penstock.load("no/such-model")
    with pytest.raises(CheckpointError, match="cannot be reached, and nothing of that name was fetched before"):
        read_config("no/such-model", ModelSource(model="no/such-model"))
    with pytest.raises(CheckpointError, match="no tokenizer of that name on the Hugging Face hub"):
        penstock.tokenizer("no/such-model")
