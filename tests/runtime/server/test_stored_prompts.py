"""Prompts that come again are restored, and clients are told."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.support.chat_models import byte_tokenizer
from tests.support.servers import Served, serving

LONG: Any = [{"role": "user", "content": "word " * 150}]


@pytest.fixture
def storing(chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server that stores prompts, however fast this machine computes them."""
    monkeypatch.setattr("penstock.runtime.prefixes.prefix.worth_reading", lambda *_, **__: True)
    with serving(chat_folder, tmp_path, byte_tokenizer(), loading={"kv_prefix": "16MiB"}) as server:
        yield server


def test_a_client_can_ask_to_have_its_prompt_stored_at_once(storing: Served):
    prompt = "other " * 150
    with openai.OpenAI(base_url=f"{storing.url}/v1", api_key="-", max_retries=0) as client:
        kept: Any = {"prompt_cache_retention": "24h"}
        talk: Any = [{"role": "user", "content": prompt}]
        client.chat.completions.create(model="tiny", messages=talk, max_tokens=1, **kept)
        storing.served.model.penstock.prefixes.flush()  # one is written at a time
        client.completions.create(model="tiny", prompt=prompt, max_tokens=1, extra_body=kept)
        for ask in (
            lambda: client.chat.completions.create(model="tiny", messages=talk, max_tokens=1).usage,
            lambda: client.completions.create(model="tiny", prompt=prompt, max_tokens=1).usage,
        ):
            storing.served.model.penstock.prefixes.flush()
            assert ask().prompt_tokens_details.cached_tokens >= 256


def test_cached_tokens_are_told(storing: Served):
    with openai.OpenAI(base_url=f"{storing.url}/v1", api_key="-", max_retries=0) as client:

        def ask() -> Any:
            return client.chat.completions.create(model="tiny", messages=LONG, max_tokens=4, temperature=0)

        answers = [ask()]
        cached = [0]
        assert answers[0].usage.prompt_tokens_details.cached_tokens == 0
        while not cached[-1] and len(answers) < 100:  # a prompt is written beside what is asked next
            answers.append(ask())
            cached.append(answers[-1].usage.prompt_tokens_details.cached_tokens)
        assert 0 < cached[-1] < answers[-1].usage.prompt_tokens
        assert len({answer.choices[0].message.content for answer in answers}) == 1
        response = client.responses.create(model="tiny", input=LONG, max_output_tokens=1)
        assert response.usage.input_tokens_details.cached_tokens == cached[-1]
        with ThreadPoolExecutor(4) as pool:
            beside = [*pool.map(lambda _: ask(), range(4))]
        assert {answer.choices[0].message.content for answer in beside} == {answers[0].choices[0].message.content}
        assert [answer.usage.prompt_tokens_details.cached_tokens for answer in beside] == [cached[-1]] * 4
    with anthropic.Anthropic(base_url=storing.url, api_key="-", max_retries=0) as other:
        usage = other.messages.create(model="tiny", messages=LONG, max_tokens=1).usage
    assert usage.cache_read_input_tokens == cached[-1]
    assert usage.input_tokens + cached[-1] == answers[0].usage.prompt_tokens
