"""A chat with somebody who answers by rote."""

import asyncio
import io
import signal
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from penstock.runtime.chat.conversation import Conversation, Turn
from penstock.runtime.chat.partner import Took
from penstock.runtime.chat.saved import SavedChats
from penstock.runtime.chat.screen import Screen
from penstock.runtime.chat.session import Session
from penstock.runtime.serving.text.replies import Said
from penstock.tiering.errors import PromptTooLong


class Rote:
    """Says how many messages there are, and the last of them."""

    name = "rote"

    def __init__(self) -> None:
        self.latest: Took | None = None
        self.asked: list[tuple[list[Mapping[str, str]], int]] = []
        self.fails_at: int | None = None

    async def answer(self, messages: Sequence[Mapping[str, str]], again: int) -> AsyncGenerator[Said, None]:
        self.asked.append(([*messages], again))
        question = messages[-1]["content"]
        self.latest = Took(10, 4, 3, 0.5, 1.5, "length" if "long" in question else "stop")
        if question == "fail" or len(self.asked) == self.fails_at:
            raise PromptTooLong("the prompt is too long")
        if question == "nothing":
            return
        yield Said("reasoning", "hm")
        if "thought" in question:
            return
        if question in ("stop", "stop early"):
            if question == "stop":
                yield Said("content", "so ")
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()
        yield Said("content", f"{len(messages)}: ")
        yield Said("content", question)

    def about(self) -> list[str]:
        return ["by rote"]


class Script:
    """Types lines; None is Ctrl-C."""

    def __init__(self, *lines: str | None) -> None:
        self._lines = iter(lines)
        self.left: list[str | None] = []

    async def read(self) -> str:
        for line in self._lines:
            if line is None:
                raise KeyboardInterrupt
            return line
        raise EOFError


async def play(
    tmp_path: Path, *lines: str | None, chat: Conversation | None = None, fails_at: int | None = None
) -> tuple[Session, Rote, str]:
    rote, shown = Rote(), io.StringIO()
    rote.fails_at = fails_at
    console = Console(file=shown, force_terminal=True, width=200, height=40)
    session = Session(rote, Script(*lines), Screen(console, plain=True), SavedChats(tmp_path), chat or Conversation())
    await session.run()
    return session, rote, shown.getvalue()


async def test_turns_are_remembered(tmp_path):
    session, rote, shown = await play(tmp_path, "hi\n", "", "//there")
    assert session.chat.turns == [
        Turn("user", "hi"),
        Turn("assistant", "1: hi"),
        Turn("user", "/there"),
        Turn("assistant", "3: /there"),
    ]
    assert [again for _, again in rote.asked] == [0, 0]
    assert "hm\n\n1: hi\n" in shown


async def test_system_and_new(tmp_path):
    session, rote, shown = await play(tmp_path, "/system", "/system Be brief.", "hi", "/new", "/system", "ho")
    assert rote.asked[0][0][0] == {"role": "system", "content": "Be brief."}
    assert [message["content"] for message in rote.asked[1][0]] == ["Be brief.", "ho"]
    assert "the model is told nothing" in shown
    assert session.chat.system == "Be brief."


async def test_an_answer_is_given_again(tmp_path):
    session, rote, _ = await play(tmp_path, "/regenerate", "hi", "/regenerate", "/regenerate", "ho", "/regenerate")
    assert [again for _, again in rote.asked] == [0, 1, 2, 0, 1]
    assert [turn.content for turn in session.chat.turns] == ["hi", "1: hi", "ho", "3: ho"]


async def test_a_question_that_failed_is_asked_again_beside_the_same_one_before(tmp_path):
    session, rote, _ = await play(tmp_path, "hi", "hi", "/regenerate", fails_at=2)
    assert [turn.content for turn in session.chat.turns] == ["hi", "1: hi", "hi", "3: hi"]
    assert [again for _, again in rote.asked] == [0, 0, 1]


async def test_reasoning_without_an_answer_is_told_apart(tmp_path):
    session, _, shown = await play(tmp_path, "a long thought")
    assert "cut while the model reasoned" in shown
    assert session.chat.turns == []
    _, _, shown = await play(tmp_path, "a thought")
    assert "the model has only reasoned" in shown
    assert "first token" not in shown


async def test_a_saved_chat_goes_on(tmp_path):
    await play(tmp_path, "/load", "hi", "/save", "/save one")
    _, rote, shown = await play(tmp_path, "/load", "/load one", "ho", "/regenerate")
    assert [message["content"] for message in rote.asked[0][0]] == ["hi", "1: hi", "ho"]
    assert "one\x1b[0m\n" in shown
    assert "> hi" in shown
    again, rote, _ = await play(tmp_path, "/load one", "/regenerate")
    assert again.chat.turns == [Turn("user", "hi"), Turn("assistant", "1: hi")]
    assert len(rote.asked) == 1


async def test_ctrl_c_stops_an_answer_and_a_second_one_leaves(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    session, _, shown = await play(tmp_path, "stop", None, "never read")
    assert session.chat.turns == [Turn("user", "stop"), Turn("assistant", "so ")]
    assert "stopped; Ctrl-C once more leaves" in shown
    assert signal.getsignal(signal.SIGINT) is before
    session, rote, shown = await play(tmp_path, "stop early", "/regenerate", "hi", None, "ho", None, None, "never read")
    assert [turn.content for turn in session.chat.turns] == ["hi", "1: hi", "ho", "3: ho"]
    assert [again for _, again in rote.asked] == [0, 1, 0, 0]
    assert "Ctrl-C once more leaves, and so does Ctrl-D" in shown


@pytest.mark.parametrize("question", ["fail", "nothing"])
async def test_a_question_without_an_answer_is_taken_back(tmp_path, question):
    session, _, shown = await play(tmp_path, "hi", question)
    assert len(session.chat.turns) == 2
    assert session.failed == (question == "fail")
    assert {"fail": "penstock: error: the prompt is too long", "nothing": "there is none"}[question] in shown


async def test_what_is_known_is_told(tmp_path):
    _, _, shown = await play(tmp_path, "/stats", "long", "/stats", "/help", "/none", "/exit", "never read")
    assert "latest answer: 3 tokens, 2.0/s; the prompt had 10, 4 of them kept" in shown
    assert shown.count("by rote") == 2
    assert "the answer was cut" in shown
    assert "/regenerate" in shown
    assert "penstock: error: there is no command /none" in shown
    assert "never read" not in shown
