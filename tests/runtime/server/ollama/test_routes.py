"""Ollama's interface."""

import json
from typing import Any

import httpx2
import openai
import pytest

from tests.support.servers import Served

CHAT = [{"role": "user", "content": "Is this é a tested text?"}]
OPTIONS = {"temperature": 0, "num_predict": 16, "num_ctx": 4096}
TOOL = {"type": "function", "function": {"name": "heat", "parameters": {"type": "object", "properties": {}}}}


def lines(found: httpx2.Response) -> list[Any]:
    return [json.loads(line) for line in found.text.splitlines()]


def said_by_openai(client: openai.OpenAI) -> str:
    chat: Any = CHAT
    found = client.chat.completions.create(model="tiny", messages=chat, max_tokens=16, temperature=0)
    return str(found.choices[0].message.content)


def test_a_chat_goes_on_at_once_or_in_lines(raw: httpx2.Client, client: openai.OpenAI):
    asked = {"model": "tiny:latest", "messages": CHAT, "options": OPTIONS}
    whole = raw.post("/api/chat", json={**asked, "stream": False}).json()
    live = lines(raw.post("/api/chat", json=asked))
    assert whole["message"] == {"role": "assistant", "content": said_by_openai(client)}
    assert "".join(line["message"]["content"] for line in live) == whole["message"]["content"]
    assert [line["done"] for line in live[-2:]] == [False, True]
    for last in (whole, live[-1]):
        assert (last["done_reason"], last["eval_count"], last["prompt_eval_count"]) == ("length", 16, 34)
        assert last["total_duration"] >= last["eval_duration"] > 0


def test_a_prompt_is_a_chat_unless_it_is_raw(raw: httpx2.Client, client: openai.OpenAI):
    asked = {"model": "tiny", "prompt": CHAT[0]["content"], "options": OPTIONS, "stream": False}
    assert raw.post("/api/generate", json=asked).json()["response"] == said_by_openai(client)
    plain = client.completions.create(model="tiny", prompt=CHAT[0]["content"], max_tokens=16, temperature=0)
    assert raw.post("/api/generate", json={**asked, "raw": True}).json()["response"] == plain.choices[0].text
    live = lines(raw.post("/api/generate", json={**asked, "raw": True, "stream": True}))
    assert "".join(line["response"] for line in live) == plain.choices[0].text


@pytest.mark.parametrize("form", ["json", {"type": "object", "properties": {"a": {"enum": ["é"]}}, "required": ["a"]}])
def test_an_answer_keeps_to_a_format(raw: httpx2.Client, form: Any):
    options = {"num_predict": 400, "seed": 1, "stop": ["\n\n\n"]}
    asked = {"model": "tiny", "messages": CHAT, "format": form, "options": options, "stream": False}
    assert raw.post("/api/chat", json=asked).json()["message"]["content"].startswith("{")


def test_calls_and_results_are_a_part_of_the_chat(server: Served, raw: httpx2.Client):
    call = {"function": {"name": "heat", "arguments": {"on": True}}}
    chat = [*CHAT, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "done"}]
    found = raw.post("/api/chat", json={"model": "tiny", "messages": chat, "options": OPTIONS, "stream": False}).json()
    shown = [*CHAT, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "done"}]
    ids = server.tokenizer.apply_chat_template(shown, add_generation_prompt=True)["input_ids"]
    assert found["prompt_eval_count"] == len(ids)


def test_tools_are_told_to_the_model(calling_server: Served):
    asked = {"model": "tiny", "messages": CHAT, "options": OPTIONS, "stream": False}
    bare, told = (
        httpx2.post(f"{calling_server.url}/api/chat", json=asked | more).json()["prompt_eval_count"]
        for more in ({}, {"tools": [TOOL]})
    )
    assert told > bare


def test_the_model_is_listed_and_shown(raw: httpx2.Client, calling_server: Served):
    [listed] = raw.get("/api/tags").json()["models"]
    assert (listed["name"], listed["details"]["family"]) == ("tiny", "llama")
    assert listed["size"] > 0
    shown = raw.post("/api/show", json={"model": "tiny"}).json()
    assert (shown["capabilities"], shown["model_info"]["llama.context_length"]) == (["completion"], 1024)
    assert "<|im_start|>" in shown["template"]
    other = httpx2.post(f"{calling_server.url}/api/show", json={"model": "tiny"}).json()
    assert other["capabilities"] == ["completion", "tools"]
    assert raw.get("/api/version").json()["version"]


@pytest.mark.parametrize(
    ("path", "change", "status", "said"),
    [
        ("/api/chat", {"model": "other"}, 404, "no model 'other'"),
        ("/api/show", {"model": "other"}, 404, "no model 'other'"),
        (
            "/api/chat",
            {"messages": [{"role": "user", "content": "x", "images": ["aa"]}]},
            400,
            "images: it is not",
        ),
        ("/api/chat", {"options": {"mirostat": 1}}, 400, "'mirostat' is not known here"),
        ("/api/chat", {"options": {"num_predict": 5000}}, 400, "positions"),
        ("/api/generate", {"prompt": "x", "context": [1]}, 400, "context: it is not read"),
    ],
)
def test_errors_are_lines(raw: httpx2.Client, path: str, change: Any, status: int, said: str):
    asked = {"model": "tiny", **({"messages": CHAT} if path == "/api/chat" else {})}
    found = raw.post(path, json=asked | change)
    assert (found.status_code, said in found.json()["error"]) == (status, True), found.text
