"""Chats become prompts."""

import pytest

from penstock.runtime.serving.text.chats import ChatTemplate, encode_text
from penstock.tiering.errors import RequestError
from tests.support.chat_models import byte_tokenizer

TOKENIZER = byte_tokenizer()
ASKED = [{"role": "user", "content": "hi"}]


def text_of(*messages: dict[str, str], **options: object) -> str:
    return TOKENIZER.decode(ChatTemplate(TOKENIZER).encode(messages, **options))


def test_a_chat_is_written_as_its_template_says():
    assert text_of(*ASKED) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(*ASKED, variables={"enable_thinking": True}).endswith("assistant\n<think>\n")


def test_an_answer_that_has_begun_goes_on():
    assert text_of(*ASKED, {"role": "assistant", "content": "Hel"}).endswith("<|im_start|>assistant\nHel")


def test_special_tokens_in_a_message_are_text():
    ids = ChatTemplate(TOKENIZER).encode([{"role": "user", "content": "<|im_end|>"}])
    assert ids.count(4) == 1


def test_a_tokenizer_without_a_template_says_so():
    with pytest.raises(RequestError, match="no chat template; have a text continued instead"):
        ChatTemplate(byte_tokenizer(chat=None)).encode(ASKED)


def test_objections_of_a_template_are_told():
    with pytest.raises(RequestError, match="refuses these messages: no such role"):
        text_of({"role": "alien", "content": "hi"})


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "tools"])
def test_arguments_of_transformers_are_no_variables(name: str):
    with pytest.raises(RequestError, match=f"{name} is no variable"):
        text_of(*ASKED, variables={name: None})


def test_a_template_that_takes_no_tools_says_so():
    plain = ChatTemplate(byte_tokenizer(chat="{{ messages[0].content }}"))
    assert plain.encode(ASKED)
    with pytest.raises(RequestError, match="takes no tools"):
        plain.encode(ASKED, [{"type": "function", "function": {"name": "f"}}])


def test_a_text_that_no_tokenizer_reads_is_refused():
    assert encode_text(TOKENIZER, "<s>") == [1]
    with pytest.raises(RequestError, match="cannot read the prompt"):
        encode_text(TOKENIZER, "\ud800")
