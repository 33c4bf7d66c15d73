"""A loaded model and a server answer alike, and what was said before is not computed again."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import penstock
from penstock.runtime.chat.conversation import Conversation
from penstock.runtime.chat.local import LocalPartner, forget_prompts
from penstock.runtime.chat.partner import Partner
from penstock.runtime.chat.remote import connect
from penstock.runtime.serving.engine import Engine
from penstock.runtime.serving.requests import Sampling
from penstock.tiering.errors import PromptTooLong, ServerError
from tests.support.chat_models import RESPONSES, byte_tokenizer, save_chat_model
from tests.support.servers import Served, serving

LONG = "a word or two " * 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("partners") / "llama")


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored prompts are read, however fast this machine computes them."""
    monkeypatch.setattr("penstock.runtime.prefixes.prefix.worth_reading", lambda *_, **__: True)


@pytest.fixture(scope="module")
def server(folder: Path, store: Path) -> Iterator[Served]:
    with serving(folder, store, byte_tokenizer(responses=RESPONSES), key="secret") as server:
        yield server


@asynccontextmanager
async def local(folder: Path, store: Path, sampling: Sampling | None = None, **options: Any) -> AsyncIterator[Any]:
    loading = {key: options.pop(key) for key in [*options] if key.startswith("kv_")}
    with penstock.load(folder, store=store, host_memory="1GiB", threads=1, **loading) as model, Engine(model) as engine:
        yield LocalPartner(
            model, byte_tokenizer(responses=RESPONSES), engine, "tiny", sampling or Sampling(), **{"most": 8} | options
        )


async def say(partner: Partner, chat: Conversation, text: str, again: int = 0) -> str:
    chat.ask(text)
    said = "".join([piece.text async for piece in partner.answer(chat.messages(), again)])
    chat.answer(said)
    return said


async def test_what_was_said_is_not_computed_again(folder, tmp_path, reading):
    chat, cold = Conversation("Be brief."), Conversation("Be brief.")
    async with local(folder, tmp_path) as plain:
        expected = [await say(plain, cold, text) for text in (LONG, "more", "and more")]
        assert plain.latest.cached_tokens == 0
    async with local(folder, tmp_path, kv_prefix="16MiB") as partner:
        assert await say(partner, chat, LONG) == expected[0]
        assert partner.latest.cached_tokens == 0
        assert await say(partner, chat, "more") == expected[1]
        assert partner.latest.cached_tokens == 256
        assert partner.latest.prompt_tokens < 512
    async with local(folder, tmp_path, kv_prefix="16MiB") as later:
        assert await say(later, chat, "and more") == expected[2]
        assert later.latest.cached_tokens == 256
        assert any("256 tokens of 1 prompts restored" in line for line in later.about()[0].splitlines())


async def test_prompts_of_one_chat_can_be_forgotten(folder, tmp_path):
    for namespace, left in (("mine", 0), ("chat", 1)):
        async with local(folder, tmp_path, kv_prefix="16MiB", kv_namespace=namespace) as partner:
            await say(partner, Conversation(), LONG)
            model = partner._model
            model.penstock.prefixes.flush()
            store = model.penstock.prefixes.store
            assert len(store.records()) == 1
            if not left:
                forget_prompts(model)
            assert len(store.records()) == left


async def test_chance_is_repeatable_and_each_answer_anew(folder, store):
    wild = Sampling(temperature=3.0)
    async with local(folder, store, wild, seed=7) as partner:
        answers = [await say(partner, Conversation(), "hi", again) for again in (0, 0, 1)]
        assert answers[0] == answers[1] != answers[2]
        assert (partner.latest.tokens, partner.latest.ending) == (8, "length")
    async with local(folder, store, wild) as partner:
        assert len({await say(partner, Conversation(), "hi") for _ in range(3)}) > 1


async def test_an_answer_that_is_left_ends_its_request(folder, store):
    async with local(folder, store, most=200) as partner:
        answer = partner.answer([{"role": "user", "content": "hi"}], 0)
        await anext(answer)
        await answer.aclose()
        assert partner.latest.ending is None
        assert await say(partner, Conversation(), "hi")
        with pytest.raises(PromptTooLong):
            await say(partner, Conversation(), "word " * 1000)


async def test_a_server_answers_as_a_model_here(folder, store, server):
    partner = connect(server.url, None, "secret", {"temperature": 0, "max_tokens": 8, "min_p": 0.5, "top_p": None})
    async with local(folder, store) as here:
        chats = Conversation("Be brief."), Conversation("Be brief.")
        for text in ("hi", "ho"):
            assert await say(partner, chats[0], text) == await say(here, chats[1], text)
        assert partner.latest is not None
        assert (partner.latest.prompt_tokens, partner.latest.tokens) == (here.latest.prompt_tokens, here.latest.tokens)
        assert partner.latest.ending == here.latest.ending == "length"
    assert partner.about() == [f"tiny at {server.url}/v1/"]
    server.idle()


async def test_a_server_stops_when_the_answer_is_left(server):
    partner = connect(server.url, "tiny", "secret", {"max_tokens": 900})
    answer = partner.answer([{"role": "user", "content": "hi"}], 0)
    await anext(answer)
    await answer.aclose()
    server.idle()


async def test_what_a_server_refuses_is_one_line(server):
    partner = connect(server.url, None, "secret", {})
    with pytest.raises(ServerError, match=r"refuses: .*positions"):
        await say(partner, Conversation(), "word " * 1000)
    with pytest.raises(ServerError, match="wants a key"):
        connect(server.url, None, None, {})
    with pytest.raises(ServerError, match="has no model other; it has: tiny"):
        connect(server.url, "other", "secret", {})
    for url in ("http://127.0.0.1:9", "http://", "http://[", "http://127.0.0.1:99999"):
        with pytest.raises(ServerError, match=r"no server answers|refuses"):
            connect(url, None, None, {})
