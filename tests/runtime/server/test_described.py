"""The description of the paths."""

from typing import Any

import httpx2
import jsonschema
import pytest


@pytest.fixture
def description(raw: httpx2.Client) -> dict[str, Any]:
    found: dict[str, Any] = raw.get("/openapi.json").json()
    return found


def test_every_path_is_described(description: dict[str, Any]):
    operations = [(path, method) for path, methods in description["paths"].items() for method in methods]
    assert {("/v1/chat/completions", "post"), ("/v1/messages", "post"), ("/api/chat", "post"), ("/health", "get")} <= {
        *operations
    }
    names = [each["operationId"] for methods in description["paths"].values() for each in methods.values()]
    assert sorted({*names}) == sorted(names)
    assert all(each["summary"] for methods in description["paths"].values() for each in methods.values())


def test_bodies_are_described_as_they_are_read(raw: httpx2.Client, description: dict[str, Any]):
    content = description["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    schema = {**content["application/json"]["schema"], "components": description["components"]}
    good = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "max_tokens": 1, "stop": ["x"]}
    for change in ({}, {"max_tokens": 0}, {"messages": []}, {"temperature": "warm"}, {"messages": [{"role": "alien"}]}):
        fits = jsonschema.Draft202012Validator(schema).is_valid(good | change)
        assert (raw.post("/v1/chat/completions", json=good | change).status_code == 200) == fits
