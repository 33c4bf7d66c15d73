"""What a served model says about itself, and how a request's gaps are filled."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from penstock.runtime.server.answers.meters import Meters
from penstock.runtime.server.answers.served import ServedModel
from penstock.runtime.server.answers.service import Service
from penstock.runtime.server.web.errors import ApiError
from penstock.runtime.serving.defaults import MOST_TOKENS
from penstock.runtime.serving.requests import Sampling
from tests.support.chat_models import byte_tokenizer
from tests.support.tiny_models import tiny_config


def served(name: str = "tiny", generation: dict[str, Any] | None = None, **overrides: Any) -> ServedModel:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config("llama", **overrides))
    model.generation_config = GenerationConfig(eos_token_id=[2, 4], **(generation or {}))
    positions = model.config.max_position_embeddings
    engine: Any = SimpleNamespace(room=lambda prompt: max(0, positions - prompt + 1))
    return ServedModel(model, byte_tokenizer(), engine, name, Meters())


def test_gaps_are_filled_from_the_generation_config_then_as_openai_does():
    assert served().sampling() == Sampling(temperature=1.0)
    model = served(generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20})
    assert model.sampling() == Sampling(temperature=0.6, top_p=0.9, top_k=20)
    assert model.sampling(temperature=0, top_p=None, min_p=0.1) == Sampling(0, 20, 0.9, 0.1)


def test_the_room_is_what_the_positions_leave():
    assert served(max_position_embeddings=100).room(90) == 11
    assert served(max_position_embeddings=100).room(200) == 1
    assert served(max_position_embeddings=10**6).room(90) == MOST_TOKENS


def test_it_knows_its_tokens():
    assert served().ends == {2, 4}
    assert served().token_text(served().tokenizer.convert_tokens_to_ids("Ã")) == ("�", [0xC3])


@pytest.fixture
def two() -> Service:
    return Service((served("one"), served("two")), Meters(), 1)


def test_a_model_is_found_by_its_name(two: Service):
    assert two.find("two").name == two.find("two:latest").name == "two"
    for name, said in (("three", "no model 'three' here; there are: one, two"), (None, "no model is named")):
        with pytest.raises(ApiError) as raised:
            two.find(name)
        assert (raised.value.status, said in raised.value.message) == (404, True)
    assert Service(two.models[:1], Meters(), 1).find(None).name == "one"
