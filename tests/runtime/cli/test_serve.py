"""``penstock serve`` as a process: it starts, answers, and ends as it is asked."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.chat_models import save_chat_model

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("served") / "chatty")


@contextmanager
def serving(*folders: Path, store: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server as a process, and its address."""
    command = "from penstock.runtime.cli.main import run; run()"
    arguments = ["serve", *map(str, folders), "--json", "--port", "0", "--store", str(store), "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        assert process.stdout is not None
        told = "".join(iter(lambda: process.stdout.readline(), "}\n")) + "}"  # type: ignore[union-attr]
        yield process, json.loads(told)["url"]
    finally:
        process.kill()
        process.communicate()


def ask(url: str, **more: Any) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/completions", json={"prompt": "ab", "max_tokens": 4, **more}, timeout=60)


def test_it_answers_and_ends_after_the_answers_that_it_gives(folder: Path, store: Path):
    with serving(folder, store=store) as (process, url):
        assert ask(url, model="chatty").json()["usage"]["completion_tokens"] > 0
        long = {"prompt": "ab", "max_tokens": 200, "stream": True, "logit_bias": {"2": -100}}
        with httpx2.stream("POST", f"{url}/v1/completions", json=long, timeout=60) as found:
            lines = found.iter_lines()
            while not next(lines).startswith("data: "):
                pass
            with httpx2.stream("GET", f"{url}/dashboard/events", timeout=60) as page:
                looked = page.iter_lines()
                while next(looked) != "event: settings":
                    pass
                process.send_signal(signal.SIGTERM)
                rest = [line for line in lines if line]
                assert [*looked][-1] == ""  # whoever only looks on is not waited for
        assert rest[-1] == "data: [DONE]"
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "stopping; 1 requests have 30 s to end" in process.stderr.read()


def test_ctrl_c_ends_it_and_a_second_one_at_once(folder: Path, store: Path):
    with serving(folder, store=store, PENSTOCK_API_KEY="secret") as (process, url):
        assert ask(url).status_code == 401
        headers = {"authorization": "Bearer secret"}
        long = {"prompt": "ab", "max_tokens": 900, "stream": True, "logit_bias": {"2": -100}}
        with httpx2.stream("POST", f"{url}/v1/completions", json=long, headers=headers, timeout=60) as found:
            lines = found.iter_lines()
            while not next(lines).startswith("data: "):
                pass
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            assert "stopping" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130


def test_several_models_take_turns_and_are_named_in_requests(folder: Path, tmp_path: Path, store: Path):
    other = save_chat_model(tmp_path / "mixture", "qwen3_moe")
    with serving(folder, other, store=store) as (_, url):
        alone = {name: ask(url, model=name, temperature=0).json()["choices"] for name in ("chatty", "mixture")}
        assert ask(url, model="chatty", temperature=0).json()["choices"] == alone["chatty"] != alone["mixture"]
        for missing in ({}, {"model": "third"}):
            found = ask(url, **missing)
            assert found.status_code == 404
            assert "there are: chatty, mixture" in found.json()["error"]["message"]
        names = [model["id"] for model in httpx2.get(f"{url}/v1/models").json()["data"]]
        assert names == ["chatty", "mixture"]
        assert 'penstock_memory_bytes{model="chatty",tier="host"}' in (metrics := httpx2.get(f"{url}/metrics").text)
        assert 'penstock_memory_bytes{model="mixture"' not in metrics  # it is not in memory
        with httpx2.stream("GET", f"{url}/dashboard/events", timeout=60) as page:
            said = next(line for line in page.iter_lines() if line.startswith('data: {"models"'))
        limits = [model["limit"]["what"] for model in json.loads(said[6:])["models"]]
        assert limits[1] == "away" != limits[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--name", "one"], "1 names for 2 models"),
        ([], "two models are called 'chatty'"),
        (["--name", "a", "--name", "b", "--revision", "main"], "it is of one model; several are given"),
    ],
)
def test_names_that_do_not_tell_models_apart_are_refused(folder: Path, run: Run, options: list[str], said: str):
    code, _, err = run("serve", folder, folder, *options)
    assert code == 2
    assert said in " ".join(err.split())


def test_a_port_that_is_taken_is_said_in_one_line(folder: Path, run: Run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = run("serve", folder, "--port", port)
    assert (code, out) == (1, "")
    where = f"cannot listen on 127.0.0.1, port {port}"
    assert err == f"penstock: error: {where}: Address already in use; choose another --port\n"


def test_an_address_that_is_none_is_said_in_one_line(folder: Path, run: Run):
    code, _, err = run("serve", folder, "--host", "203.0.113.7", "--port", "0")
    assert (code, err.count("\n")) == (1, 1)
    assert "cannot listen on 203.0.113.7" in err


def test_what_is_not_installed_is_named(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    find = "penstock.runtime.cli.serve.importlib.util.find_spec"
    monkeypatch.setattr(find, lambda name: None if name in ("uvicorn", "prometheus_client") else name)
    code, _, err = run("serve", folder)
    assert code == 1
    assert err == "penstock: error: serve needs uvicorn, prometheus-client; run: pip install 'penstock[serve]'\n"


@pytest.mark.parametrize(
    ("option", "said"), [("--api-key", "everybody would have it"), ("--name", "a name is empty")], ids=["key", "name"]
)
def test_an_empty_key_or_name_is_refused(option: str, said: str, folder: Path, run: Run) -> None:
    code, out, error = run("serve", folder, option, " ")
    assert (code, out) == (2, "")
    assert said in " ".join(error.split())
