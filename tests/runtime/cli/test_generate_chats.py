"""``penstock generate`` with a model that chats: the template, stop strings, penalties, and texts that end at once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from penstock.runtime.serving.sampling import Penalties
from tests.support.chat_models import save_chat_model

pytestmark = pytest.mark.usefixtures("elsewhere")
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("chats") / "chatty")


@pytest.fixture(scope="module")
def tokenizer(chatty: Path) -> Any:
    return AutoTokenizer.from_pretrained(chatty)


def transformers_says(folder: Path, ids: list[int], count: int, **options: Any) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    found: list[int] = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, **options)[0].tolist()
    return found[len(ids) :]


def chat_ids(tokenizer: Any, *messages: tuple[str, str]) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    return ids


def test_a_chat_template_is_used_where_there_is_one(ask, chatty, tokenizer, tmp_path):
    ids = chat_ids(tokenizer, ("user", QUESTION))
    got = ask("generate", chatty, "-p", QUESTION, "-n", 8)
    assert got["token_ids"] == transformers_says(chatty, ids, 8)
    assert got["prompt_tokens"] == len(ids)
    (tmp_path / "question.txt").write_text(QUESTION)
    assert ask("generate", chatty, "--prompt-file", "question.txt", "--chat", "-n", 8)["token_ids"] == got["token_ids"]
    told = chat_ids(tokenizer, ("system", "Be brief."), ("user", QUESTION))
    assert ask("generate", chatty, "-p", QUESTION, "--system", "Be brief.", "-n", 2)["prompt_tokens"] == len(told)


def test_raw_continues_the_plain_text(ask, chatty, tokenizer):
    ids = tokenizer(QUESTION)["input_ids"]
    got = ask("generate", chatty, "-p", QUESTION, "--raw", "-n", 8)
    assert (got["prompt_tokens"], got["token_ids"]) == (len(ids), transformers_says(chatty, ids, 8))


def test_a_model_without_a_template_has_no_chat(run, checkpoint):
    code, _, err = run("generate", checkpoint, "-p", "w5", "--chat")
    assert (code, err.count("\n")) == (1, 1)
    assert "has no chat template" in err
    code, _, err = run("generate", checkpoint, "-p", "w5", "--system", "w6")
    assert code == 2
    assert "has no chat template" in err


def test_a_text_that_ends_at_once_is_a_note(run, chatty, tmp_path):
    config = json.loads((chatty / "generation_config.json").read_text())
    ask_raw = ("generate", chatty, "-p", QUESTION, "--raw", "-n", 4)
    (first, *_) = json.loads(run(*ask_raw, "--json")[1])["token_ids"]
    (chatty / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": first}))
    try:
        code, out, err = run(*ask_raw)
        assert (code, out.strip()) == (0, "")
        assert err.startswith("penstock: note: the first token of the model ends the text; it has a chat template")
        assert json.loads(run(*ask_raw, "--json")[1])["ending"] == "end"
    finally:
        (chatty / "generation_config.json").write_text(json.dumps(config))


def test_a_text_ends_before_what_it_is_to_stop_at(run, ask, chatty):
    whole = ask("generate", chatty, "-p", QUESTION, "-n", 24)
    assert whole["ending"] == "length"
    stop = whole["text"][6:9]
    got = ask("generate", chatty, "-p", QUESTION, "-n", 24, "--stop", "never there", "--stop", stop)
    assert got["text"] == whole["text"][: whole["text"].index(stop)]
    assert got["ending"] == "stop"
    assert len(got["token_ids"]) < 24
    assert run("generate", chatty, "-p", QUESTION, "-n", 24, "--stop", stop)[1] == got["text"] + "\n"


def test_temperature_0_is_greedy_and_min_p_1_too(ask, chatty):
    greedy = ask("generate", chatty, "-p", QUESTION, "-n", 8)["token_ids"]
    assert ask("generate", chatty, "-p", QUESTION, "-n", 8, "--temperature", 0)["token_ids"] == greedy
    assert ask("generate", chatty, "-p", QUESTION, "-n", 8, "--min-p", 1)["token_ids"] == greedy
    assert ask("generate", chatty, "-p", QUESTION, "-n", 8, "--temperature", 3)["token_ids"] != greedy


def test_penalties(ask, chatty, tokenizer):
    ids = chat_ids(tokenizer, ("user", QUESTION))
    asked = ("generate", chatty, "-p", QUESTION, "-n", 12)
    expected = transformers_says(chatty, ids, 12, repetition_penalty=5.0)
    assert ask(*asked, "--repetition-penalty", 5)["token_ids"] == expected
    never_again = ask(*asked, "--presence-penalty", 100)["token_ids"]
    assert len({*never_again}) == 12
    assert ask(*asked, "--frequency-penalty", 100)["token_ids"] == never_again
    tidy = ask(*asked, "--frequency-penalty", 100, "--beams", 2)["token_ids"]
    assert len({*tidy}) == 12


def test_penalties_count_each_sequence_for_itself():
    ids = torch.tensor([[9, 1, 1, 2], [9, 3, 2, 2]])
    scores = torch.zeros(2, 10)
    found = Penalties(0.5, 0.25, 1)(ids, scores)
    assert found[0].tolist() == [0, -1.0, -0.75, 0, 0, 0, 0, 0, 0, 0]
    assert found[1].tolist() == [0, 0, -1.0, -0.75, 0, 0, 0, 0, 0, 0]


def test_a_prompt_that_is_no_file_is_one_line(run, chatty):
    code, _, err = run("generate", chatty, "--prompt-file", "absent.txt")
    assert (code, err.count("\n")) == (1, 1)
    assert "absent.txt" in err
