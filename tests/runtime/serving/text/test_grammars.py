"""Grammars that answers keep to."""

import json
import re
from typing import Any

import pytest
import torch

from penstock.runtime.serving.text.grammars import Grammars, NewMask
from penstock.tiering.errors import RequestError
from tests.support.chat_models import byte_tokenizer

TOKENIZER = byte_tokenizer()
GRAMMARS = Grammars(TOKENIZER, 324, [2])
"""Four logits more than there are tokens, as models have them that are padded."""
PROMPT = [5, 6, 7]


def written(mask: NewMask, seed: int) -> str:
    """What a model writes that has no idea, but would like to end."""
    chance = torch.Generator().manual_seed(seed)
    keep, ids = mask(len(PROMPT)), [*PROMPT]
    for _ in range(300):
        scores = torch.randn(1, 324, generator=chance)
        scores[0, 2] = 100
        scores[0, TOKENIZER.convert_tokens_to_ids(['"', "}", "]"])] += 3
        ids.append(int(keep(torch.tensor([ids]), scores).argmax()))
        if ids[-1] == 2:
            return str(TOKENIZER.decode(ids[len(PROMPT) : -1]))
    raise AssertionError("it has no end")


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_keeps_to_a_schema(seed: int):
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["é", "b"]}, "counts": {"type": "array", "items": {"type": "integer"}}},
        "required": ["kind", "counts"],
        "additionalProperties": False,
    }
    found = json.loads(written(GRAMMARS.of_schema(schema), seed))
    assert found.keys() == {"kind", "counts"}
    assert found["kind"] in ("é", "b")
    assert all(isinstance(each, int) for each in found["counts"])


def test_an_answer_keeps_to_an_expression_and_to_a_lark_grammar():
    assert re.fullmatch("[0-9]{3}-x+", written(GRAMMARS.of_regex("[0-9]{3}-x+"), 0))
    assert re.fullmatch("(yes|no)!+", written(GRAMMARS.of_lark('start: ("yes" | "no") "!"+'), 0))


def test_a_call_names_one_of_the_tools_and_keeps_to_its_parameters():
    parameters = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/small"}},
        "$defs": {"small": {"enum": [1, 2]}},
        "required": ["x"],
        "additionalProperties": False,
    }
    mask = GRAMMARS.of_calls([{"name": 'quote"d', "parameters": parameters}])
    call = json.loads(written(mask, 1))
    assert call["name"] == 'quote"d'
    assert call["arguments"]["x"] in (1, 2)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "objekt"}, "at #: Invalid type: objekt"),
        ({"properties": {"a": {"items": {"type": "strin"}}}}, "at #/properties/a/items: Invalid type: strin"),
        ({"anyOf": [{}, {"not": {}}]}, "at #/anyOf/1: Unimplemented keys"),
        ({"$ref": "#/nope"}, "at #: Pointer"),
        (
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
            "no text keeps to it",
        ),
        ({"enum": []}, "Unsatisfiable"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_with_the_place(schema: dict[str, Any], said: str):
    with pytest.raises(RequestError, match="JSON schema cannot be used") as raised:
        GRAMMARS.of_schema(schema)
    assert said in str(raised.value)


def test_a_schema_that_is_nested_too_deep_is_refused():
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(3000):
        schema = {"items": schema}
    with pytest.raises(RequestError, match="recursion limit"):
        GRAMMARS.of_schema(schema)


def test_a_schema_without_an_end_is_left_to_the_length_of_the_answer():
    mask = GRAMMARS.of_schema({"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]})(0)
    scores = mask(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 324))
    assert TOKENIZER.decode(scores.argmax(-1)) == "{"


@pytest.mark.parametrize("grammar", ["start: nothing", "start: /((/", ""])
def test_a_grammar_that_is_none_is_refused(grammar: str):
    with pytest.raises(RequestError):
        GRAMMARS.of_lark(grammar)


def test_tokens_are_told_as_bytes():
    first, second = TOKENIZER("é", add_special_tokens=False)["input_ids"]
    assert GRAMMARS.token_bytes(first) + GRAMMARS.token_bytes(second) == "é".encode()
