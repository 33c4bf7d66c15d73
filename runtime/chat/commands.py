"""What a line in a chat is: something to say, or a command (pure)."""

import difflib
from typing import NamedTuple

COMMANDS = {
    "help": ("", "show this"),
    "system": ("[TEXT]", "tell the model how to answer; without a text, show what it is told"),
    "regenerate": ("", "answer the latest question once more"),
    "new": ("", "begin a new chat"),
    "save": ("NAME", "save the chat, readable by you only"),
    "load": ("[NAME]", "go on with a saved chat; without a name, list them"),
    "stats": ("", "show what the latest answer took"),
    "exit": ("", "leave; so do Ctrl-D, and Ctrl-C twice"),
}
"""By name: the argument, and what the command does."""
_ALSO = {"quit": "exit", "q": "exit", "?": "help"}


class Command(NamedTuple):
    """A command, with the text behind it."""

    name: str
    argument: str


def parse(line: str) -> Command | str:
    """The command in ``line``, or the text to say; a text that begins with a slash is written with two. Raises
    ValueError for a command that is none."""
    text = line.strip()
    if not text.startswith("/"):
        return text
    if text.startswith("//"):
        return text[1:]
    word, _, argument = text[1:].partition(" ")
    name = _ALSO.get(word, word)
    if name not in COMMANDS:
        near = difflib.get_close_matches(word, COMMANDS, 1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists them."
        raise ValueError(f"there is no command /{word}; {hint} A text that begins with a slash is written with two")
    return Command(name, argument.strip())


def help_lines() -> list[str]:
    """The commands, for people."""
    shown = {f"/{name} {argument}".strip(): what for name, (argument, what) in COMMANDS.items()}
    width = max(map(len, shown))
    keys = (
        "Enter sends; Alt-Enter or Ctrl-J begins another line; Ctrl-C stops an answer; the arrows find what you said."
    )
    return [*(f"{name:{width}}  {what}" for name, what in shown.items()), keys]
