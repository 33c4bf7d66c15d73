"""What was said in a chat (pure)."""

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Role = Literal["user", "assistant"]
_VERSION = 1


class Turn(NamedTuple):
    """One message."""

    role: Role
    content: str


class Conversation:
    """The turns of a chat, from a user and an assistant in turn, behind what the ``system`` says."""

    def __init__(self, system: str = "", turns: Sequence[Turn] = ()) -> None:
        self.system = system
        self.turns = [*turns]

    def ask(self, text: str) -> None:
        """The user says ``text``."""
        self.turns.append(Turn("user", text))

    def answer(self, text: str) -> None:
        """The assistant says ``text``."""
        self.turns.append(Turn("assistant", text))

    def take_back(self) -> str | None:
        """Take the latest question, and its answer if it has one, out again; the question."""
        for at in range(len(self.turns) - 1, -1, -1):
            if self.turns[at].role == "user":
                question = self.turns[at].content
                del self.turns[at:]
                return question
        return None

    def messages(self) -> list[dict[str, str]]:
        """As chat templates and servers want them."""
        begin = [{"role": "system", "content": self.system}] if self.system else []
        return begin + [{"role": turn.role, "content": turn.content} for turn in self.turns]

    def dump(self) -> str:
        """The chat as text for a file."""
        document = {"penstock_chat": _VERSION, "messages": self.messages()}
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def parse(text: str) -> Conversation:
    """The chat that ``dump`` wrote as ``text``. Raises ValueError."""
    document: Any = json.loads(text)
    if not isinstance(document, dict) or document.get("penstock_chat") != _VERSION:
        raise ValueError("it is no chat that penstock has saved")
    messages = document.get("messages")
    if not isinstance(messages, list):
        raise ValueError("it has no messages")
    turns = [_turn(message) for message in messages]
    system = turns.pop(0).content if turns and turns[0].role == "system" else ""
    expected = [("user", "assistant")[at % 2] for at in range(len(turns))]
    if [turn.role for turn in turns] != expected or len(turns) % 2:
        raise ValueError("questions and answers do not take turns in it")
    return Conversation(system, turns)


def _turn(message: object) -> Any:
    if isinstance(message, dict):
        role, content = message.get("role"), message.get("content")
        if role in ("system", "user", "assistant") and isinstance(content, str):
            return Turn(role, content)
    raise ValueError("one of its messages is none")
