"""Tokens become text as they come."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.runtime.serving.text.decoding import TokenText
from tests.support.chat_models import byte_tokenizer

TOKENIZER = byte_tokenizer()
BYTES = range(5, 261)
"""The tokens of single bytes."""


def pieces_of(ids: list[int], *, special: bool = False) -> list[str]:
    text = TokenText(TOKENIZER, special=special)
    return [*(text.feed(each) for each in ids), text.end()]


@given(st.text())
def test_pieces_are_whole_characters_and_all_of_the_text(text: str):
    pieces = pieces_of(TOKENIZER(text, add_special_tokens=False)["input_ids"])
    assert "".join(pieces) == text
    assert [piece for piece in pieces if "�" in piece] == [piece for piece in text if piece == "�"]


@given(st.lists(st.sampled_from(BYTES), max_size=60))
def test_bytes_that_are_no_text_are_told_as_the_tokenizer_tells_them(ids: list[int]):
    assert "".join(pieces_of(ids)) == TOKENIZER.decode(ids)


def test_bytes_that_never_become_a_character_are_told_in_the_end():
    text = TokenText(TOKENIZER, special=False)
    last_byte = TOKENIZER.convert_tokens_to_ids("¿")  # 0xBF, which begins no character
    assert any(text.feed(last_byte) for _ in range(100))


def test_special_tokens_are_text_only_where_they_are_asked_for():
    ids = [3, *TOKENIZER("x", add_special_tokens=False)["input_ids"], 4]
    assert "".join(pieces_of(ids)) == "x"
    assert "".join(pieces_of(ids, special=True)) == "<|im_start|>x<|im_end|>"
