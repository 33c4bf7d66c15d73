"""Content, reasoning and tool calls."""

import json

import pytest

from penstock.runtime.serving.text.replies import CallReader, Piece, Reader, Said, ToolCall, template_reader
from tests.support.chat_models import RESPONSES, byte_tokenizer

TOKENIZER = byte_tokenizer()
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": "é"}}</tool_call>'
ADD = ToolCall("add", '{"a": 1, "b": "é"}')
REPLIES: list[tuple[str, str, list[Piece]]] = [
    ("", "Hello", [Said("content", "Hello")]),
    ("", "<think>\nwhy\n</think>\n\nbecause\n", [Said("reasoning", "why"), Said("content", "because")]),
    ("<think>\n", "why not</think>so be it", [Said("reasoning", "why not"), Said("content", "so be it")]),
    ("", f"Wait.\n{CALL}\n{CALL}", [Said("content", "Wait."), ADD, ADD]),
    ("", f"a {'<tool' * 2}", [Said("content", f"a {'<tool' * 2}")]),
    ("", "x<tool_call>none</tool_call>y", [Said("content", "xnone</tool_call>y")]),
    ("", 'x<tool_call>{"nam', [Said("content", 'x{"nam')]),
    ("", 'x<tool_call>{"name": "f"}</tool_call>y', [Said("content", 'x{"name": "f"}</tool_call>y')]),
    ("", "two words<|im_end|>", [Said("content", "two words")]),
    ("", "", []),
]


def joined(pieces: list[Piece]) -> list[Piece]:
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if isinstance(piece, Said) and isinstance(last, Said) and piece.kind == last.kind:
            found[-1] = Said(piece.kind, last.text + piece.text)
        else:
            found.append(piece)
    return found


def reader(begun: str) -> Reader:
    prompt = TOKENIZER(f"<|im_start|>assistant\n{begun}", add_special_tokens=False)["input_ids"]
    return template_reader(TOKENIZER, RESPONSES, prompt, None)


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(("begun", "text", "wanted"), REPLIES)
def test_a_reply_is_read_however_it_comes(begun: str, text: str, wanted: list[Piece], size: int):
    reading = reader(begun)
    pieces = [piece for at in range(0, len(text), size) for piece in reading.feed(text[at : at + size])]
    assert joined([*pieces, *reading.end()]) == wanted


def test_a_call_that_a_grammar_has_forced_is_read_when_it_is_complete():
    reading = CallReader()
    assert reading.feed(json.dumps({"name": "add", "arguments": {"a": 1, "b": "é"}})) == []
    assert reading.end() == [ADD]


def test_a_forced_call_that_was_cut_is_text():
    reading = CallReader()
    assert reading.feed('{"name": "ad') == []
    assert reading.end() == [Said("content", '{"name": "ad')]
