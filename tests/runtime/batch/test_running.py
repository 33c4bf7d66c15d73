"""Batches: files in and out, by the command, in a process of its own: killed at any moment it goes on."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from penstock.runtime.cli.main import main
from tests.support.chat_models import save_chat_model

COMMON = "You are a patient teacher of arithmetic. " * 20


def line(custom_id: str, text: str, **body: Any) -> str:
    messages = [{"role": "system", "content": COMMON}, {"role": "user", "content": text}]
    body = {"model": "gpt", "messages": messages, "max_tokens": 6, "temperature": 0, "seed": 1} | body
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body})


def write(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def answers(path: Path) -> dict[str, Any]:
    return {each["custom_id"]: each["response"] for each in map(json.loads, path.read_text().splitlines())}


def texts(path: Path) -> dict[str, str]:
    return {name: found["body"]["choices"][0]["message"]["content"] for name, found in answers(path).items()}


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("chat") / "llama", max_position_embeddings=2048)


@pytest.fixture
def options(chat_folder: Path, tmp_path: Path) -> list[str]:
    return ["batch", str(chat_folder), "--store", str(tmp_path / "store"), "--kv-host-memory", "16MiB"]


def test_answers_are_those_of_requests_by_themselves_and_beginnings_are_shared(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line(f"r{number}", f"What is {number} + {number}?") for number in range(6)]
    lines.append(line("wrong", "?", max_tokens=-3))
    source, out = write(tmp_path / "all.jsonl", lines), tmp_path / "all.answers.jsonl"
    assert main([*options, str(source), "--rows", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["answered"], report["refused"], report["requests"]) == (6, 1, 7)
    assert report["shared_share"] > 0.4
    assert report["answer_tokens"] > 6
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert answers(out)["wrong"]["status_code"] == 400
    assert "max_tokens" in answers(out)["wrong"]["body"]["error"]["message"]
    together = texts(write(tmp_path / "some", [each for each in out.read_text().splitlines() if "wrong" not in each]))
    for number in range(2):
        one = write(tmp_path / f"one{number}.jsonl", [lines[number]])
        assert main([*options, str(one), "--store", str(tmp_path / f"store{number}")]) == 0
        assert texts(tmp_path / f"one{number}.answers.jsonl")[f"r{number}"] == together[f"r{number}"]


def test_a_killed_run_goes_on_where_it_was(options: list[str], tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [line(f"r{number}", f"Count to {number}.") for number in range(12)])
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    assert main([*options, str(source), "-o", str(whole)]) == 0
    command = [sys.executable, "-c", "from penstock.runtime.cli.main import run; run()", *options]
    run = [*command, str(source), "-o", str(out), "--rows", "2"]
    with subprocess.Popen(run, stderr=subprocess.DEVNULL) as process:
        while not (out.exists() and out.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None
            os.sched_yield()
        process.send_signal(signal.SIGKILL)
    before = out.read_bytes()
    assert 2 <= before.count(b"\n") < 12
    out.write_bytes(before + b'{"id": "batch_req_1", "custom_id": "r')  # it was writing when it was killed
    assert main([*options, str(source), "-o", str(out)]) == 0
    assert out.read_bytes().startswith(before)
    assert texts(out) == texts(whole)
    assert len(out.read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1: it is no JSON"),
        ([line("a", "?"), line("a", "!")], "line 2: custom_id 'a' is that of line 1"),
        ([line("a", "?").replace("/v1/chat/completions", "/v1/images")], "line 1: url is '/v1/images'"),
        ([line("a", "?", stream=True)], "leave stream out"),
        (["", " "], "has no requests"),
        ([line("", "?")], "custom_id is missing"),
        ([line("a\udc00", "?")], "line 1: custom_id 'a\\udc00' is no text"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_before_anything_is_loaded(
    lines: list[str], said: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", lines)
    assert main([*options, str(source)]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_requests_that_cannot_be_read_twice_are_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.write(writing, line("a", "?").encode() + b"\n")
    os.close(writing)
    try:
        assert main([*options, f"/dev/fd/{reading}", "-o", str(tmp_path / "out.jsonl")]) == 1
    finally:
        os.close(reading)
    assert "it is not a regular file; write the requests into one" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_answers_of_another_file_and_the_requests_are_not_overwritten(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", [line("a", "?")])
    assert main([*options, str(source), "-o", str(source)]) == 1
    assert "has the requests" in capsys.readouterr().err
    for content, said in (
        ('{"custom_id": "other"}', "answer to 'other'"),
        ("shopping list", "lines that are no answers"),
    ):
        other = write(tmp_path / "other.jsonl", [content])
        assert main([*options, str(source), "-o", str(other)]) == 1
        assert said in capsys.readouterr().err
        assert other.read_text() == f"{content}\n"
