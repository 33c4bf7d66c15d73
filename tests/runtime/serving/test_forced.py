"""Tokens that a grammar forces are computed together, and the answer is the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock.runtime.serving.answer import compute_answer
from penstock.runtime.serving.engine import Engine
from penstock.runtime.serving.requests import Request, Token
from penstock.runtime.serving.text.grammars import Grammars
from tests.support.chat_models import byte_tokenizer
from tests.support.tiny_models import save_tiny

TOKENIZER = byte_tokenizer()
PROMPT = [5, 6, 7, 8]
MASK = Grammars(TOKENIZER, 320, [2]).of_regex(
    "(yes|no), that is what the book says about (cats|dogs)[.] And it is (so|not so)!"
)


@pytest.mark.parametrize("pages", [False, True], ids=["", "pages"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "deepseek_v3", "qwen3_next", "opt"])
def test_an_answer_takes_a_forward_for_each_choice_and_not_for_each_token(
    name: str, pages: bool, tmp_path: Path
) -> None:
    source = save_tiny(name, tmp_path / name, torch.float32)
    options: dict[str, Any] = {"kv_host_memory": "4MiB"} if pages else {}
    with penstock.load(source, store=tmp_path / "store", **options) as model:
        model.generation_config.eos_token_id = 2
        found: list[list[Token]] = [[], []]
        forwards = []
        for heard, forced in zip(found, (False, True), strict=True):
            mask = MASK(len(PROMPT))
            before = model.penstock.forwards.count
            request = Request(PROMPT, 99, processors=[mask], forces=mask.forces if forced else None)
            compute_answer(model, request, heard.append)
            forwards.append(model.penstock.forwards.count - before)
        with Engine(model) as engine:
            mask = MASK(len(PROMPT))
            beside = [*engine.answer(Request(PROMPT, 99, processors=[mask], forces=mask.forces))]
    assert [token.id for token in found[0]] == [token.id for token in found[1]] == [token.id for token in beside]
    assert found[1][-1].finish == "stop"
    said = TOKENIZER.decode([token.id for token in found[1]][:-1])
    assert said.startswith(("yes, that", "no, that"))
    assert forwards[0] == len(found[0])
    if name == "qwen3_next":
        assert forwards[1] == forwards[0], "its states take one token at a time"
    else:
        assert forwards[1] < forwards[0] / 3
