"""Chat completions, asked for by OpenAI's own client."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.support.servers import Served

CHAT: Any = [{"role": "user", "content": "Is this é a tested text?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"on": {"type": "boolean"}},
                "required": ["on"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("light", "heat")
]


def ids_alone(server: Served, chat: Any, tokens: int) -> list[int]:
    """The greedy answer of transformers' generate."""
    ids = server.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    out = server.served.model.generate(ids, max_new_tokens=tokens, do_sample=False)
    return [*out[0, ids.shape[1] :].tolist()]


def streamed(client: openai.OpenAI, **asked: Any) -> tuple[list[str], list[Any], Any]:
    """Texts, reasons and usage of a stream, by answer."""
    texts, reasons, usage = [""] * asked.get("n", 1), [None] * asked.get("n", 1), None
    for chunk in client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked):
        usage = chunk.usage
        for choice in chunk.choices:
            assert reasons[choice.index] is None
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
    return texts, reasons, usage


def test_an_answer_is_that_of_generate(server: Served, client: openai.OpenAI):
    found = client.chat.completions.create(model="tiny", messages=CHAT, temperature=0, max_tokens=24)
    ids = ids_alone(server, CHAT, 24)
    assert found.choices[0].message.content == server.tokenizer.decode(ids, skip_special_tokens=True)
    assert found.choices[0].finish_reason == ("stop" if ids[-1] == 2 else "length")
    assert found.usage.completion_tokens == len(ids)
    assert found.usage.total_tokens == found.usage.prompt_tokens + len(ids)


def test_many_at_a_time_are_answered_as_if_alone(server: Served, client: openai.OpenAI):
    chats = [[{"role": "user", "content": "word " * number}] for number in range(1, 7)]
    wanted = [server.tokenizer.decode(ids_alone(server, chat, 12), skip_special_tokens=True) for chat in chats]

    def ask(chat: Any) -> str | None:
        found = client.chat.completions.create(model="tiny", messages=chat, temperature=0, max_tokens=12)
        return found.choices[0].message.content

    with ThreadPoolExecutor(6) as pool:
        assert [*pool.map(ask, chats)] == wanted


@pytest.mark.parametrize("count", [1, 3])
def test_a_stream_says_what_is_said_at_once(client: openai.OpenAI, count: int):
    asked: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 20, "seed": 5, "n": count, "temperature": 0.8}
    found = client.chat.completions.create(**asked)
    texts, reasons, usage = streamed(client, **asked)
    assert texts == [choice.message.content for choice in found.choices]
    assert reasons == [choice.finish_reason for choice in found.choices]
    assert usage == found.usage
    assert len({*texts}) == count


def test_a_seed_repeats_an_answer_and_none_does_not(client: openai.OpenAI):
    def ask(**more: Any) -> Any:
        found = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=12, **more)
        return found.choices[0].message.content

    assert ask(seed=3) == ask(seed=3)
    assert len({ask() for _ in range(4)}) > 1


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI):
    asked: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    stop = whole[5:7]
    found = client.chat.completions.create(**asked, stop=[stop, "never said"]).choices[0]
    assert found.message.content == whole[: whole.index(stop)]
    assert found.finish_reason == "stop"
    assert streamed(client, **asked, stop=stop)[:2] == ([found.message.content], ["stop"])


def test_log_probabilities_are_those_of_the_tokens(server: Served, client: openai.OpenAI):
    asked: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 6, "temperature": 0, "logprobs": True}
    told = client.chat.completions.create(**asked, top_logprobs=3).choices[0].logprobs.content
    ids = ids_alone(server, CHAT, 6)
    assert [bytes(each.bytes) for each in told] == [server.served.grammars.token_bytes(token) for token in ids]
    for each in told:
        assert each.top_logprobs[0].logprob == each.logprob < 0
        assert len(each.top_logprobs) == 3
        assert each.logprob > each.top_logprobs[1].logprob > each.top_logprobs[2].logprob
    chunks = client.chat.completions.create(**asked, top_logprobs=3, stream=True)
    live = [each for chunk in chunks for choice in chunk.choices if choice.logprobs for each in choice.logprobs.content]
    assert live == told


def test_bias_and_penalties_change_the_answer(server: Served, client: openai.OpenAI):
    def ask(**more: Any) -> str:
        asked: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 6, "temperature": 0, **more}
        return str(client.chat.completions.create(**asked).choices[0].message.content)

    token = server.tokenizer.convert_tokens_to_ids("Q")
    assert ask(logit_bias={str(token): 100}) == "QQQQQQ"
    assert ask(logit_bias={str(token): 2.0}, frequency_penalty=2.0) != ask(logit_bias={str(token): 2.0})
    assert "QQ" not in ask(logit_bias={str(token): 4}, presence_penalty=2.0, extra_body={"repetition_penalty": 50.0})


def test_an_answer_keeps_to_a_schema(client: openai.OpenAI):
    schema = TOOLS[0]["function"]["parameters"]
    form: Any = {"type": "json_schema", "json_schema": {"name": "state", "schema": schema, "strict": True}}
    asked: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 200, "seed": 1, "response_format": form}
    found = client.chat.completions.create(**asked)
    assert json.loads(found.choices[0].message.content).keys() == {"on"}
    assert found.choices[0].finish_reason == "stop"
    assert streamed(client, **asked)[0] == [found.choices[0].message.content]


@pytest.mark.parametrize(
    ("form", "wanted"),
    [({"type": "regex", "pattern": "ab{3}"}, "abbb"), ({"type": "grammar", "grammar": 'start: "x" "y"'}, "xy")],
)
def test_other_forms_are_kept_to(client: openai.OpenAI, form: Any, wanted: str):
    found = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=20, response_format=form)
    assert found.choices[0].message.content == wanted


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "heat"}}])
def test_a_tool_is_called_where_it_has_to_be(client: openai.OpenAI, choice: Any):
    asked: Any = {
        "model": "tiny",
        "messages": CHAT,
        "max_tokens": 200,
        "seed": 2,
        "tools": TOOLS,
        "tool_choice": choice,
    }
    found = client.chat.completions.create(**asked).choices[0]
    assert found.finish_reason == "tool_calls"
    [call] = found.message.tool_calls
    assert call.function.name in (("heat",) if isinstance(choice, dict) else ("light", "heat"))
    assert json.loads(call.function.arguments).keys() == {"on"}
    chunks = [*client.chat.completions.create(**asked, stream=True)]
    [live] = [each for chunk in chunks for each in chunk.choices[0].delta.tool_calls or []]
    assert (live.function, live.index) == (call.function.model_copy(), 0) or live.function.arguments == (
        call.function.arguments
    )
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_call_and_its_result_are_a_part_of_the_chat(server: Served, client: openai.OpenAI):
    call = {"id": "1", "type": "function", "function": {"name": "heat", "arguments": '{"on": true}'}}
    chat: Any = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "done"}]},
    ]
    found = client.chat.completions.create(model="tiny", messages=chat, max_tokens=2)
    shown = [
        *CHAT,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**call, "function": {"name": "heat", "arguments": {"on": True}}}],
        },
        {"role": "tool", "content": "done"},
    ]
    ids = server.tokenizer.apply_chat_template(shown, add_generation_prompt=True)["input_ids"]
    assert found.usage.prompt_tokens == len(ids)


def test_tools_that_may_be_called_need_a_tokenizer_that_tells_calls(client: openai.OpenAI, calling_server: Served):
    asked: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 3, "tools": TOOLS}
    with pytest.raises(openai.BadRequestError, match="no response template"):
        client.chat.completions.create(**asked)
    with openai.OpenAI(base_url=f"{calling_server.url}/v1", api_key="-", max_retries=0) as other:
        assert other.chat.completions.create(**asked).choices[0].finish_reason == "length"


def test_reasoning_is_told_apart(calling_server: Served):
    asked: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 12, "temperature": 0}
    thinking: Any = {"chat_template_kwargs": {"enable_thinking": True}}
    with openai.OpenAI(base_url=f"{calling_server.url}/v1", api_key="-", max_retries=0) as client:
        found = client.chat.completions.create(**asked, extra_body=thinking).choices[0].message
        chunks = client.chat.completions.create(**asked, extra_body=thinking, stream=True)
        live = "".join(getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks)
    assert (found.content, found.reasoning_content) == ("", live)
    assert live


def test_a_developer_is_the_system_of_models_that_know_none(server: Served, client: openai.OpenAI):
    def tokens(role: str) -> int:
        chat: Any = [{"role": role, "content": "Be brief."}, *CHAT]
        found = client.chat.completions.create(model="tiny", messages=chat, max_tokens=1)
        return int(found.usage.prompt_tokens)

    assert tokens("developer") == tokens("system")
