"""Embeddings, with OpenAI's own client."""

import json
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from penstock.runtime.server.answers.pooling import FILE, find_pooling
from penstock.tiering.errors import CheckpointError
from tests.support.chat_models import byte_tokenizer, save_chat_model
from tests.support.servers import Served, serving

TEXTS = ["Hello there", "a", "the rest of the sentence, which is somewhat longer than the others"]


def expected(folder: Path, text: str, pooling: str) -> torch.Tensor:
    """As transformers has it, by hand."""
    ids = torch.tensor([byte_tokenizer()(text)["input_ids"]])
    with torch.no_grad():
        states = AutoModelForCausalLM.from_pretrained(folder).model(ids).last_hidden_state[0]
    pooled = {"mean": states.mean(0), "last": states[-1], "first": states[0]}[pooling]
    return torch.nn.functional.normalize(pooled, dim=0)


def test_they_have_the_bits_of_transformers(client: openai.OpenAI, chat_folder: Path):
    found = client.embeddings.create(model="tiny", input=TEXTS)  # the client asks for base64
    assert [each.index for each in found.data] == [0, 1, 2]
    for each, text in zip(found.data, TEXTS, strict=True):
        assert torch.equal(torch.tensor(each.embedding), expected(chat_folder, text, "mean"))
    assert found.usage.prompt_tokens == sum(len(byte_tokenizer()(text)["input_ids"]) for text in TEXTS)
    one = client.embeddings.create(model="tiny", input=TEXTS[0], encoding_format="float")
    assert np.float32(one.data[0].embedding).tolist() == found.data[0].embedding
    ids = byte_tokenizer()(TEXTS[0])["input_ids"]
    assert client.embeddings.create(model="tiny", input=ids).data[0].embedding == found.data[0].embedding


@pytest.mark.parametrize("pooling", ["last", "first"])
def test_weights_that_stream_and_other_poolings(tmp_path: Path, store: Path, pooling: str):
    folder = save_chat_model(tmp_path / "moe", "qwen3_moe")
    with serving(folder, store, byte_tokenizer(), loading={"host_memory": "200KiB"}, pooling=pooling) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
            found = client.embeddings.create(model="tiny", input=TEXTS * 4)
        assert server.served.model.penstock.stats().flash_bytes_read > 0
    for at, each in enumerate(found.data):
        assert torch.equal(torch.tensor(each.embedding), expected(folder, TEXTS[at % 3], pooling))


def test_what_cannot_be_is_said(client: openai.OpenAI, server: Served):
    ask = client.embeddings.create
    with pytest.raises(openai.BadRequestError, match=f"{server.served.width} dimensions"):
        ask(model="tiny", input="x", dimensions=3)
    with pytest.raises(openai.BadRequestError, match="the prompt is empty"):
        ask(model="tiny", input="")
    with pytest.raises(openai.BadRequestError, match="1024 positions"):
        ask(model="tiny", input=[5] * 1025)
    with pytest.raises(openai.BadRequestError, match="the prompt has the token 9999"):
        ask(model="tiny", input=[9999])
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        ask(model="other", input="x")


@pytest.mark.parametrize(
    ("said", "pooling"),
    [
        (None, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode_lasttoken": True, "word_embedding_dimension": 8}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_a_models_files_say_how_it_pools(tmp_path: Path, said: dict | None, pooling: str):
    if said is not None:
        (tmp_path / FILE).parent.mkdir()
        (tmp_path / FILE).write_text(json.dumps(said))
    assert find_pooling(tmp_path) == pooling


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"pooling_mode_max_tokens": True},
        {"pooling_mode": "max"},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
    ],
)
def test_pooling_that_is_not_known_is_said(tmp_path: Path, said: dict):
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="choose one with --pooling"):
        find_pooling(tmp_path)
