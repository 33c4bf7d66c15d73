"""Responses, asked for by OpenAI's own client."""

import json
from typing import Any

import openai
import pytest

from tests.support.servers import Served

ASKED = "Is this é a tested text?"
CHAT: Any = [{"role": "user", "content": ASKED}]
SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "name": name, "parameters": SCHEMA, "strict": True} for name in ("light", "heat")]


def streamed(client: openai.OpenAI, **asked: Any) -> tuple[list[Any], Any]:
    """The events of a stream, and its response."""
    with client.responses.stream(**asked) as stream:
        events = [*stream]
        return events, events[-1].response  # the client's own word for it knows complete ones only


def test_an_answer_is_that_of_a_chat(client: openai.OpenAI):
    found = client.responses.create(model="tiny", input=ASKED, max_output_tokens=16, temperature=0, instructions="Hi.")
    chat: Any = [{"role": "system", "content": "Hi."}, *CHAT]
    other = client.chat.completions.create(model="tiny", messages=chat, max_tokens=16, temperature=0)
    assert found.output_text == other.choices[0].message.content
    assert (found.usage.input_tokens, found.usage.output_tokens) == (other.usage.prompt_tokens, 16)
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_stream_says_what_is_said_at_once(client: openai.OpenAI):
    asked: Any = {"model": "tiny", "input": CHAT, "max_output_tokens": 16, "temperature": 0}
    found = client.responses.create(**asked)
    events, live = streamed(client, **asked)
    assert (live.output_text, live.status, live.usage) == (found.output_text, found.status, found.usage)
    assert [event.sequence_number for event in events] == [*range(len(events))]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == found.output_text
    assert events[-1].type == "response.incomplete"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "heat"}])
def test_a_tool_is_called_where_it_has_to_be(client: openai.OpenAI, choice: Any):
    asked: Any = {"model": "tiny", "input": CHAT, "max_output_tokens": 200, "tools": TOOLS, "tool_choice": choice}
    found = client.responses.create(**asked)
    [call] = found.output
    assert (found.status, call.type, json.loads(call.arguments).keys()) == ("completed", "function_call", {"on"})
    _, live = streamed(client, **asked)
    assert json.loads(live.output[0].arguments).keys() == {"on"}


def test_calls_and_results_are_a_part_of_the_conversation(server: Served, client: openai.OpenAI):
    items: Any = [
        *CHAT,
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
        {"type": "function_call", "call_id": "1", "name": "heat", "arguments": '{"on": true}'},
        {"type": "function_call_output", "call_id": "1", "output": "done"},
    ]
    found = client.responses.create(model="tiny", input=items, max_output_tokens=1)
    call = {"type": "function", "function": {"name": "heat", "arguments": {"on": True}}}
    shown = [
        *CHAT,
        {"role": "assistant", "content": "Wait.", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "done"},
    ]
    ids = server.tokenizer.apply_chat_template(shown, add_generation_prompt=True)["input_ids"]
    assert found.usage.input_tokens == len(ids)


def test_an_answer_keeps_to_a_schema(client: openai.OpenAI):
    form: Any = {"format": {"type": "json_schema", "name": "state", "schema": SCHEMA}}
    found = client.responses.create(model="tiny", input=CHAT, max_output_tokens=200, text=form)
    assert json.loads(found.output_text).keys() == {"on"}


def test_reasoning_is_an_item_of_its_own(calling_server: Served):
    asked: Any = {"model": "tiny", "input": CHAT, "max_output_tokens": 8}
    template = calling_server.tokenizer.chat_template
    thinking = template.replace("{% if enable_thinking %}", "{% if true %}")
    with (
        pytest.MonkeyPatch.context() as patch,
        openai.OpenAI(base_url=f"{calling_server.url}/v1", api_key="-", max_retries=0) as client,
    ):
        patch.setattr(calling_server.tokenizer, "chat_template", thinking)
        found = client.responses.create(**asked)
        _, live = streamed(client, **asked)
    for response in (found, live):
        assert [item.type for item in response.output] == ["reasoning"]
        assert response.output[0].content[0].text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"previous_response_id": "resp-1"}, "'previous_response_id' is not known here"),
        ({"input": []}, "input: "),
        ({"input": [{"type": "item_reference", "id": "x"}]}, r"input\[0\]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "reads text"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
    ],
)
def test_what_cannot_be_done_is_refused(client: openai.OpenAI, change: Any, said: str):
    with pytest.raises(openai.BadRequestError, match=said):
        client.responses.create(**{"model": "tiny", "input": CHAT, "max_output_tokens": 1, **change})
