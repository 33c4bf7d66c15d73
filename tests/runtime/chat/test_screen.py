"""Answers on a terminal: formatted, whole at the end, no wider and no taller than it."""

import io
import re

import pytest
from rich.console import Console

from penstock.runtime.chat.screen import Screen

TEXT = """\
# Title

Some **bold** text.

- one
- two

```python
print('# no title')

x = 1
```

| a | b |
|---|---|
| 1 | 2 |

end"""


def shown(text: str, step: int, *, plain: bool = False, terminal: bool = True) -> tuple[str, str]:
    """What stays on a terminal of 40 columns when ``text`` comes in pieces of ``step``, and all that was written."""
    file = io.StringIO()
    console = Console(file=file, width=40, height=12, force_terminal=terminal, color_system="standard", highlight=False)
    with Screen(console, plain=plain).answer() as answer:
        for at in range(0, len(text), step):
            answer.feed("content", text[at : at + step])
    return _screen(file.getvalue()), file.getvalue()


def _screen(written: str) -> str:
    """The lines that a terminal would show in the end."""
    lines, row = [""], 0
    for piece in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\n|\r)", written):
        if piece == "\n":
            row += 1
            while len(lines) <= row:
                lines.append("")
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif re.fullmatch(r"\x1b\[\d*A", piece):
            row -= int(piece[2:-1] or 1)
        elif not piece.startswith("\x1b[") and piece != "\r":
            lines[row] += piece
    return "\n".join(line.rstrip() for line in lines)


LINES = """\
                 Title

Some bold text.

 • one
 • two

 print('# no title')

 x = 1

 a  b
 ────
 1  2

end"""


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_markdown_is_the_same_however_it_comes(step):
    screen, written = shown(TEXT, step)
    assert screen.rstrip("\n") == LINES
    assert "\x1b[1m" in written


def test_a_list_taller_than_the_screen_is_whole_in_the_end():
    text = "\n".join(f"- item{number}." for number in range(60))
    screen, _ = shown(text, 5)
    assert [screen.count(f"item{number}.") for number in range(60)] == [1] * 60


@pytest.mark.parametrize(("plain", "terminal"), [(True, True), (False, False)])
def test_plain_is_the_text_itself(plain, terminal):
    assert shown(TEXT, 3, plain=plain, terminal=terminal)[1] == TEXT + "\n"


def test_a_terminal_takes_no_commands_from_a_model():
    evil = "a\x1b]0;title\x07b\x9b2Jc\x7f\td\r"
    for plain in (True, False):
        _, written = shown(evil, 100, plain=plain)
        assert "\x1b]" not in written
        assert not {"\x07", "\x9b", "\x7f"} & {*written}
    assert shown(evil, 100, terminal=False)[1] == evil + "\n"


def test_reasoning_is_told_apart():
    file = io.StringIO()
    with Screen(Console(file=file, width=40, force_terminal=False)).answer() as answer:
        answer.feed("reasoning", "hm")
        answer.feed("content", "yes")
    assert file.getvalue() == "hm\n\nyes\n"
    console = Console(file=file, width=40, height=12, force_terminal=True, color_system="standard")
    with Screen(console).answer() as answer:
        answer.feed("reasoning", "**hm**")
        answer.feed("content", "**yes**")
    assert "**hm**" in file.getvalue()
    assert "**yes**" not in file.getvalue()


def _interrupt(screen: Screen) -> None:
    with screen.answer() as answer:
        answer.feed("content", "so far")
        raise KeyboardInterrupt


def test_an_answer_that_is_stopped_shows_what_has_come():
    file = io.StringIO()
    console = Console(file=file, width=40, height=12, force_terminal=True)
    with pytest.raises(KeyboardInterrupt):
        _interrupt(Screen(console))
    assert _screen(file.getvalue()).strip() == "so far"
