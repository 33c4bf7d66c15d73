"""Bodies that are none: an error that says what is wrong, never 500."""

import json
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHAT = [{"role": "user", "content": "hi"}]
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": CHAT, "max_tokens": 1},
    "/v1/completions": {"model": "tiny", "prompt": "hi", "max_tokens": 1},
    "/v1/messages": {"model": "tiny", "messages": CHAT, "max_tokens": 1},
    "/api/chat": {"model": "tiny", "messages": CHAT, "stream": False, "options": {"num_predict": 1}},
    "/api/generate": {"model": "tiny", "prompt": "hi", "stream": False, "options": {"num_predict": 1}},
}
IMAGE = [{"type": "image_url", "image_url": {"url": "data:,"}}]


def test_the_good_ones_are_good(raw: httpx2.Client):
    assert {raw.post(path, json=body).status_code for path, body in GOOD.items()} == {200}


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"model": "\\ud800"}', b'{"n": 1e999}']
)
def test_a_body_that_is_no_object_is_refused(raw: httpx2.Client, path: str, body: bytes):
    found = raw.post(path, content=body)
    assert (found.status_code, "error" in found.json()) == (400, True)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": IMAGE}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": [
            {"function": {"name": "f", "arguments": "{"}}]}]}, "messages[0].tool_calls[0].function.arguments"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**40}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": 2**64}, "seed"),
        ({"n": 0}, "n"),
        ({"stop": [1]}, "stop[0]"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"320": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"max_tokens": 1100}, "messages"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"model": 1}, "model"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_place(raw: httpx2.Client, change: Any, place: str):
    found = raw.post("/v1/chat/completions", json=GOOD["/v1/chat/completions"] | change)
    assert (found.status_code, found.json()["error"]["param"]) == (400, place)


@pytest.mark.parametrize("path", GOOD)
def test_a_field_that_might_change_the_answer_is_refused(raw: httpx2.Client, path: str):
    found = raw.post(path, json=GOOD[path] | {"temprature": 1})
    assert found.status_code == 400
    assert "'temprature' is not known here" in found.text
    assert raw.post(path, json=GOOD[path] | {"temprature": None}).status_code == 200


def test_fields_that_change_nothing_are_ignored(raw: httpx2.Client):
    more = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    assert raw.post("/v1/chat/completions", json=GOOD["/v1/chat/completions"] | more).status_code == 200


def test_too_long_a_prompt_is_told_apart(raw: httpx2.Client):
    long = GOOD["/v1/chat/completions"] | {"messages": [{"role": "user", "content": "x" * 1100}]}
    found = raw.post("/v1/chat/completions", json=long)
    assert (found.status_code, found.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_schema_that_cannot_be_used_is_refused_with_the_place(raw: httpx2.Client):
    schema = {"properties": {"a": {"type": "strin"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    found = raw.post("/v1/chat/completions", json=GOOD["/v1/chat/completions"] | {"response_format": form})
    assert (found.status_code, "#/properties/a: Invalid type: strin" in found.text) == (400, True)


@pytest.mark.parametrize("path", GOOD)
def test_a_body_that_is_too_large_is_not_read(raw: httpx2.Client, path: str):
    assert raw.post(path, content=b" " * 40_000_000).status_code == 413
    assert raw.get("/health").status_code == 200


def test_a_body_without_a_length_is_read_up_to_the_limit(raw: httpx2.Client):
    sent = 0

    def endless() -> Any:
        nonlocal sent
        while sent < 10**9:
            sent += 10**6
            yield b" " * 10**6

    with pytest.raises(httpx2.TransportError):
        raise_unless_413(raw.post("/v1/completions", content=endless()))
    assert sent < 2 * 10**8


def raise_unless_413(found: httpx2.Response) -> None:
    assert found.status_code == 413
    raise httpx2.WriteError("refused")


@pytest.mark.parametrize(("method", "path"), [("GET", "/nothing"), ("PUT", "/v1/models"), ("GET", "/v1/completions")])
def test_a_path_that_is_not_there_is_named(raw: httpx2.Client, method: str, path: str):
    found = raw.request(method, path)
    assert found.status_code in (404, 405)
    assert path in found.json()["error"]["message"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    *(
        "model",
        "messages",
        "prompt",
        "system",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "n",
        "raw",
    ),
    *(
        "stop",
        "logprobs",
        "top_logprobs",
        "stream",
        "stream_options",
        "tools",
        "tool_choice",
        "response_format",
        "echo",
    ),
    *("format", "options", "think", "logit_bias", "chat_template_kwargs"),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*GOOD]), st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3))
def test_nothing_makes_the_server_fail(raw: httpx2.Client, path: str, change: dict[str, Any]):
    found = raw.post(path, content=json.dumps(GOOD[path] | change).encode("utf-8", "surrogatepass"))
    assert found.status_code < 500, found.text
