"""The pieces of an answer, from its tokens."""

from typing import Any

import pytest

from penstock.runtime.serving.requests import Token
from penstock.runtime.serving.text.replies import Piece, PlainReader, Said, ToolCall, template_reader
from penstock.runtime.serving.text.writing import AnswerText
from tests.support.chat_models import RESPONSES, byte_tokenizer

TOKENIZER = byte_tokenizer()
END = 2
CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


def answer(text: str, finish: Any = "stop", **options: Any) -> tuple[list[Piece], AnswerText]:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"] + ([END] if finish == "stop" else [])
    reader = options.pop("reader", PlainReader())
    writing = AnswerText(TOKENIZER, reader, ends=frozenset({END}), **options)
    pieces: list[Piece] = []
    for at, token in enumerate(ids):
        pieces += writing.feed(Token(token, finish=finish if at == len(ids) - 1 else None))
        if writing.ending is not None:
            break
    return pieces, writing


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Said))


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_an_answer_ends_as_the_engine_says(finish: str):
    pieces, writing = answer("héllo", finish)
    assert (text_of(pieces), writing.ending, writing.stop_string) == ("héllo", finish, None)


def test_the_last_character_may_be_incomplete():
    ids = TOKENIZER("é", add_special_tokens=False)["input_ids"]
    writing = AnswerText(TOKENIZER, PlainReader())
    assert writing.feed(Token(ids[0], finish="length")) == [Said("content", "�")]


def test_what_was_held_back_for_a_stop_string_is_told_at_the_end():
    pieces, writing = answer("abc st", stops=["stop"])
    assert (text_of(pieces), writing.ending) == ("abc st", "stop")


def test_a_stop_string_ends_an_answer():
    pieces, writing = answer("abc stop it", "length", stops=["stop"])
    assert (text_of(pieces), writing.ending, writing.stop_string) == ("abc ", "stop", "stop")


def test_tool_calls_are_why_an_answer_ends_and_may_be_counted():
    def reading() -> Any:
        return template_reader(TOKENIZER, RESPONSES, [], None)

    pieces, writing = answer(CALL * 3, special=True, reader=reading())
    assert (pieces, writing.ending) == ([ToolCall("f", "{}")] * 3, "tool_calls")
    pieces, writing = answer(CALL * 3, special=True, reader=reading(), most_calls=1)
    assert (pieces, writing.ending) == ([ToolCall("f", "{}")], "tool_calls")
