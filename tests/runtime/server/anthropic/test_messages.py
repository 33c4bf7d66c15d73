"""Messages, asked for by Anthropic's own client."""

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.support.servers import Served

CHAT: Any = [{"role": "user", "content": "Is this é a tested text?"}]
GREEDY: Any = {"temperature": 0}
"""This client knows no temperature."""
_BAD = anthropic.BadRequestError
SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
TOOLS: Any = [{"name": name, "description": "Turn it.", "input_schema": SCHEMA} for name in ("light", "heat")]


@pytest.fixture
def asking(server: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="-", max_retries=0, timeout=60) as client:
        yield client
        server.idle()


def test_an_answer_is_that_of_openais_interface(asking: anthropic.Anthropic, client: openai.OpenAI):
    found = asking.messages.create(model="tiny", messages=CHAT, max_tokens=20, extra_body=GREEDY, system="Be brief.")
    chat: Any = [{"role": "system", "content": "Be brief."}, *CHAT]
    other = client.chat.completions.create(model="tiny", messages=chat, max_tokens=20, temperature=0)
    assert [block.text for block in found.content] == [other.choices[0].message.content]
    assert found.usage.input_tokens == other.usage.prompt_tokens
    assert found.usage.output_tokens == other.usage.completion_tokens
    assert found.stop_reason == {"length": "max_tokens", "stop": "end_turn"}[other.choices[0].finish_reason]


def test_a_stream_says_what_is_said_at_once(asking: anthropic.Anthropic):
    asked: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 20, "extra_body": GREEDY}
    found = asking.messages.create(**asked)
    with asking.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        live = stream.get_final_message()
    assert [block.text for block in live.content] == [block.text for block in found.content]
    assert (live.usage, live.stop_reason) == (found.usage, found.stop_reason)
    assert kinds[0] == "message_start"
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_a_stop_sequence_is_named(asking: anthropic.Anthropic):
    asked: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 20, "extra_body": GREEDY}
    whole = asking.messages.create(**asked).content[0].text
    place = next(place for place in range(1, len(whole)) if whole.index(whole[place : place + 2]) == place)
    stop = whole[place : place + 2]
    found = asking.messages.create(**asked, stop_sequences=[stop])
    assert found.content[0].text == whole[:place]
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", stop)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "heat"}])
def test_a_tool_is_called_where_it_has_to_be(asking: anthropic.Anthropic, choice: Any):
    asked: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 200, "tools": TOOLS, "tool_choice": choice}
    found = asking.messages.create(**asked)
    [block] = found.content
    assert (found.stop_reason, block.input.keys()) == ("tool_use", {"on"})
    assert block.name in ((choice["name"],) if "name" in choice else ("light", "heat"))
    with asking.messages.stream(**asked) as stream:
        [live] = stream.get_final_message().content
    assert live.input.keys() == {"on"}


def test_results_of_tools_are_messages_of_their_own(server: Served, asking: anthropic.Anthropic):
    chat: Any = [
        *CHAT,
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "Wait."},
            {"type": "tool_use", "id": "1", "name": "heat", "input": {"on": True}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "done"}]},
            {"type": "text", "text": "Go on."},
        ]},
    ]  # fmt: skip
    call = {"type": "function", "function": {"name": "heat", "arguments": {"on": True}}}
    shown = [
        *CHAT,
        {"role": "assistant", "content": "Wait.", "tool_calls": [call]},
        {"role": "tool", "content": "done"},
        {"role": "user", "content": "Go on."},
    ]
    ids = server.tokenizer.apply_chat_template(shown, add_generation_prompt=True)["input_ids"]
    assert asking.messages.count_tokens(model="tiny", messages=chat).input_tokens == len(ids)


def test_a_header_that_is_another_one_each_time_is_put_aside(asking: anthropic.Anthropic):
    def tokens(*system: str) -> int:
        blocks: Any = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}} for text in system]
        return asking.messages.count_tokens(model="tiny", messages=CHAT, system=blocks).input_tokens

    header = "x-anthropic-billing-header: cc_version=1.2; cch=a1b2c;"
    assert tokens(header, "Be brief.") == tokens(f"{header}\nBe brief.") == tokens("Be brief.")


def test_reasoning_is_a_block_of_its_own(calling_server: Served):
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    with anthropic.Anthropic(base_url=calling_server.url, api_key="-", max_retries=0) as client:
        found = client.messages.create(model="tiny", messages=CHAT, max_tokens=8, thinking=thinking)
    assert [block.type for block in found.content] == ["thinking"]


def test_an_answer_keeps_to_a_schema(asking: anthropic.Anthropic):
    output: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
    found = asking.messages.create(model="tiny", messages=CHAT, max_tokens=200, output_config=output)
    assert found.content[0].text.lstrip().startswith("{")
    assert found.stop_reason == "end_turn"


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"max_tokens": 0}, _BAD, "max_tokens: "),
        ({"model": "other"}, anthropic.NotFoundError, "no model 'other'"),
        ({"max_tokens": 5000}, _BAD, "positions"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            _BAD,
            "'image' are not",
        ),
        (
            {"tool_choice": {"type": "tool", "name": "x"}, "tools": TOOLS},
            _BAD,
            "none of the tools",
        ),
    ],
)
def test_errors_are_those_of_the_client(asking: anthropic.Anthropic, change: Any, error: Any, said: str):
    with pytest.raises(error, match=said):
        asking.messages.create(**{"model": "tiny", "messages": CHAT, "max_tokens": 3, **change})
