"""``penstock chat`` as a process: in a terminal, and with lines of a pipe."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest

from penstock.runtime.chat.harmless import harmless
from tests.support.chat_models import save_chat_model

COMMAND = [sys.executable, "-c", "from penstock.runtime.cli.main import run; run()", "chat"]
CTRL_C, CTRL_D, ALT_ENTER, UP = "\x03", "\x04", "\x1b\r", "\x1b[A"
Ask = Callable[..., dict[str, Any]]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends an answer by itself."""
    folder = save_chat_model(tmp_path_factory.mktemp("terminal") / "chatty")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": None}))
    return folder


@contextmanager
def terminal(*arguments: object) -> Iterator["pexpect.spawn[str]"]:
    """The command on a terminal of 200 columns; it must not outlive the test."""
    environment = os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "200", "LINES": "40"}
    child = pexpect.spawn(
        COMMAND[0], [*COMMAND[1:], *map(str, arguments)], env=environment, encoding="utf-8", dimensions=(40, 200)
    )
    child.timeout = 60
    try:
        yield child
    finally:
        child.close(force=True)


def test_a_chat_in_a_terminal(folder: Path, tmp_path: Path) -> None:
    with terminal(folder, "--store", tmp_path, "--threads", 1, "-n", 5, "--temperature", 0) as child:
        child.expect_exact("Ctrl-D")
        child.send("first line" + ALT_ENTER + "second line\r")
        child.expect_exact("the answer was cut: it is as long as it may be")
        child.send("/stats\r")
        child.expect(r"latest answer: 5 tokens.*tokens in \d+ forwards.*host memory: ")
        child.send("/save mine\r")
        child.expect_exact("saved as ")
        child.send(UP + UP + UP + "\r")  # the first question again
        child.expect_exact("the answer was cut")
        child.send("half a thought" + CTRL_C)
        child.expect_exact("Ctrl-C once more leaves, and so does Ctrl-D")
        child.send("/syst\t Be brief.\r")
        child.expect_exact("Be brief.")
        child.send(CTRL_D)
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0
    chats = tmp_path / "chats"
    saved = json.loads((chats / "mine.json").read_text())["messages"]
    assert saved[0] == {"role": "user", "content": "first line\nsecond line"}
    assert chats.stat().st_mode & 0o777 == 0o700
    for path in chats.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert "+second line" in (chats / "history").read_text()


@pytest.mark.usefixtures("elsewhere")
def test_ctrl_c_stops_an_answer_and_a_second_one_leaves(folder: Path, tmp_path: Path, ask: Ask) -> None:
    alone = harmless(ask("generate", folder, "-p", "go on for long", "-n", 40)["text"])
    with terminal(folder, "--store", tmp_path, "--threads", 1, "--plain", "--temperature", 0) as child:
        child.expect_exact("Ctrl-D")
        child.send("go on for long\r")
        child.expect_exact(alone.split("\n")[0][:8])
        child.sendintr()
        child.expect_exact("stopped; Ctrl-C once more leaves")
        child.send(CTRL_C)
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0


@pytest.mark.usefixtures("elsewhere")
def test_lines_of_a_pipe_are_answered_one_by_one(
    folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("chat", folder, "--store", tmp_path, "-n", 5, "--temperature", 0)
    lines = tmp_path / "lines"

    def run_with(text: str, *arguments: object) -> tuple[int, str, str]:
        lines.write_text(text)
        with lines.open() as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            return run(*arguments)

    code, out, err = run_with("hi\n/save one\n/none\nhi\n", *arguments)
    assert code == 0
    assert "there is no command /none" in err
    (chat,) = (tmp_path / "chats").iterdir()
    answer = json.loads(chat.read_text())["messages"][1]["content"]
    assert out.startswith(answer + "\n")
    code, out, err = run_with("x" * 2000 + "\n", *arguments, "--load", "one")
    assert (code, answer in out) == (1, True)
    assert "positions" in err


@pytest.mark.usefixtures("elsewhere")
def test_bad_use_is_one_line(run: Run, checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run("chat", checkpoint)
    assert (code, err.count("\n")) == (1, 1)
    assert "has no chat template" in err
    code, _, err = run("chat", "http://127.0.0.1:9")
    assert (code, err.count("\n")) == (1, 1)
    assert "no server answers at http://127.0.0.1:9/v1; start one: penstock serve MODEL" in err
    assert run("chat", folder, "--json")[0] == 2
    assert run("chat", folder, "--top-p", "7")[0] == 2
    monkeypatch.setattr("penstock.runtime.cli.chat.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    code, _, err = run("chat", "https://127.0.0.1:9")
    assert (code, err) == (1, "penstock: error: chat needs prompt-toolkit, openai; run: pip install 'penstock[chat]'\n")
