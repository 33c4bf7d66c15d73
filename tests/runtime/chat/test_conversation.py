"""What was said, and the commands of a chat."""

import pytest

from penstock.runtime.chat.commands import COMMANDS, Command, help_lines
from penstock.runtime.chat.commands import parse as parse_line
from penstock.runtime.chat.conversation import Conversation, Turn, parse


def test_what_is_saved_reads_back():
    chat = Conversation("Be brief.")
    chat.ask("Grüße?\n\n\x00")
    chat.answer("日本 🙂")
    again = parse(chat.dump())
    assert (again.system, again.turns) == ("Be brief.", [Turn("user", "Grüße?\n\n\x00"), Turn("assistant", "日本 🙂")])
    assert [message["role"] for message in again.messages()] == ["system", "user", "assistant"]
    assert parse(Conversation().dump()).messages() == []


def test_a_question_is_taken_back_with_its_answer():
    chat = Conversation()
    assert chat.take_back() is None
    for text in ("one", "two"):
        chat.ask(text)
        chat.answer(text.upper())
    chat.ask("three")
    assert [chat.take_back() for _ in range(4)] == ["three", "two", "one", None]
    assert chat.turns == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"penstock_chat": 2, "messages": []}',
        '{"penstock_chat": 1}',
        '{"penstock_chat": 1, "messages": [5]}',
        '{"penstock_chat": 1, "messages": [{"role": "tool", "content": "x"}]}',
        '{"penstock_chat": 1, "messages": [{"role": "user", "content": ["x"]}]}',
        '{"penstock_chat": 1, "messages": [{"role": "user", "content": "x"}]}',
        '{"penstock_chat": 1, "messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}]}',
        '{"penstock_chat": 1, "messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}',
    ],
)
def test_what_is_no_saved_chat_is_refused(text):
    with pytest.raises(ValueError, match=r"it |one of |do not take turns|Expecting"):
        parse(text)


def test_lines():
    assert parse_line("  hello there \n") == "hello there"
    assert parse_line("//etc is a folder") == "/etc is a folder"
    assert parse_line("/system Be  brief. ") == Command("system", "Be  brief.")
    assert parse_line("/quit") == Command("exit", "")
    with pytest.raises(ValueError, match=r"did you mean /regenerate\?"):
        parse_line("/regenrate")
    with pytest.raises(ValueError, match="/help lists them"):
        parse_line("/")
    assert all(any(line.startswith(f"/{name}") for line in help_lines()) for name in COMMANDS)
