"""The interpreter ends while threads generate: no abort, no hang, the exit status that the program chose."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.logits import least_budget

CODES = {"return": 0, "exit": 3, "error": 1, "signal": 143}


def run(*given: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.ending_child", *map(str, given)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def check(done: subprocess.CompletedProcess[str], how: str) -> None:
    assert done.returncode == CODES[how], done.stderr
    assert "ValueError: on purpose" in done.stderr if how == "error" else done.stderr == ""


@pytest.mark.parametrize(("how", "budget"), [*((how, "least") for how in CODES), ("return", "all")])
def test_while_daemons_generate(tiny_moe_folder: Path, store: Path, how: str, budget: str) -> None:
    size = least_budget(tiny_moe_folder, store) if budget == "least" else budget
    check(run(how, "daemon", tiny_moe_folder, store, size, 17), how)


def test_while_daemons_are_about_to_generate(tiny_moe_folder: Path, store: Path) -> None:
    check(run("exit", "idle", tiny_moe_folder, store, least_budget(tiny_moe_folder, store), 0), "exit")


def test_while_daemons_read_pages(tiny_dense_folder: Path, store: Path) -> None:
    size = least_budget(tiny_dense_folder, store)
    check(run("return", "paged", tiny_dense_folder, store, size, 20), "return")


@pytest.mark.parametrize("how", ["return", "exit", "error"])
def test_threads_that_are_no_daemons_go_on_to_their_end(tiny_moe_folder: Path, store: Path, how: str) -> None:
    done = run(how, "alive", tiny_moe_folder, store, least_budget(tiny_moe_folder, store), 0)
    check(done, how)
    assert done.stdout == "generated\n"


@pytest.mark.soak
@pytest.mark.parametrize("how", CODES)
def test_while_daemons_generate_at_many_moments(tiny_moe_folder: Path, store: Path, how: str) -> None:
    size = least_budget(tiny_moe_folder, store)
    for at in range(0, 120, 5):
        check(run(how, "daemon", tiny_moe_folder, store, size, at), how)
