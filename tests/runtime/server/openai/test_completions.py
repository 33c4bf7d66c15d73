"""Completions, asked for by OpenAI's own client."""

from typing import Any

import openai
import torch

from tests.support.servers import Served


def text_alone(server: Served, prompt: str, tokens: int) -> str:
    ids = torch.tensor([server.tokenizer(prompt)["input_ids"]])
    out = server.served.model.generate(ids, max_new_tokens=tokens, do_sample=False)
    return str(server.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def test_texts_go_on_as_in_generate(server: Served, client: openai.OpenAI):
    prompts = ["Once upon", "a"]
    found = client.completions.create(model="tiny", prompt=prompts, temperature=0, max_tokens=10)
    assert [choice.text for choice in found.choices] == [text_alone(server, prompt, 10) for prompt in prompts]
    ids = [server.tokenizer(prompt)["input_ids"] for prompt in prompts]
    assert client.completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=10).choices == found.choices
    assert found.usage.prompt_tokens == sum(map(len, ids))


def test_a_stream_says_what_is_said_at_once(client: openai.OpenAI):
    asked: Any = {"model": "tiny", "prompt": ["abc", "de"], "n": 2, "seed": 7, "max_tokens": 8, "echo": True}
    found = client.completions.create(**asked)
    texts = [""] * 4
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in found.choices]
    assert [text[:2] for text in texts] == ["ab", "ab", "de", "de"]


def test_log_probabilities_are_told_for_each_token(client: openai.OpenAI):
    asked: Any = {"model": "tiny", "prompt": "abc", "max_tokens": 5, "temperature": 0, "logprobs": 2}
    told = client.completions.create(**asked).choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 5
    assert all(logprob < 0 for logprob in told.token_logprobs)
    live: list[float] = []
    for chunk in client.completions.create(**asked, stream=True):
        live += [value for choice in chunk.choices if choice.logprobs for value in choice.logprobs.token_logprobs]
    assert live == told.token_logprobs


def test_a_text_has_sixteen_new_tokens_by_default(client: openai.OpenAI):
    found = client.completions.create(model="tiny", prompt="abc", logit_bias={"2": -100})
    assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (16, "length")
