"""Real pressure: a process in a real control group, in which another one takes memory in the middle of a token."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

import penstock
from penstock.kernels.machine.cgroups import read_memory_group
from penstock.tiering.units import MiB
from tests.support.tiny_models import LARGER, save_tiny

HOG, ROOM = 160 * MiB, 96 * MiB
"""What the other process takes, and what is free in the group when it comes."""
PROMPT = [[5, 17, 101, 33, 250, 7]]
TOKENS = 9

CHILD = """
import json, os, sys
open(sys.argv[1], "w").write(str(os.getpid()))
import torch, penstock
def say(**what):
    print(json.dumps(what), flush=True)
model = penstock.load(sys.argv[2], store=sys.argv[3], attn_implementation="eager", weights_format="as-is")
ids = torch.tensor(json.loads(sys.argv[4]))
def generate():
    options = {"max_new_tokens": int(sys.argv[5]), "do_sample": False, "pad_token_id": 0}
    return model.generate(ids, **options)[0].tolist()
def limits():
    stats = model.penstock.stats()
    return {"limit": stats.host_limit, "floor": stats.host_floor, "resident": stats.resident_bytes}
def use_all():  # experts too
    model(torch.randint(0, model.config.vocab_size, (1, 96)))
for _ in range(3):
    use_all()
say(tokens=generate(), **limits())
layer, left = model.model.layers[len(model.model.layers) // 2], [5]
def pause(*_):  # in the middle of the fifth token
    left[0] -= 1
    if not left[0]:
        say(paused=True)
        sys.stdin.readline()
layer.register_forward_pre_hook(pause)
sys.stdin.readline()
say(tokens=generate(), **limits())
for line in sys.stdin:
    use_all()
    say(tokens=generate(), **limits())
"""

TAKE = """
import os, sys, time
open(sys.argv[1], "w").write(str(os.getpid()))
step, held = 4 << 20, []
for _ in range(int(sys.argv[2]) // step):
    held.append(bytearray(b"x") * step)
    time.sleep(0.02)
print("taken", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory control group of our own, with a limit that nobody feels yet."""
    v1 = Path("/sys/fs/cgroup/memory")
    folder = (v1 if v1.is_dir() else v1.parent) / f"penstock-test-{os.getpid()}"
    try:
        folder.mkdir()
        file = limit_file(folder)
        if file is None:
            folder.rmdir()
            pytest.skip("control groups here do not limit memory")
        file.write_text(str(psutil.virtual_memory().total // 2))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    for _ in range(100):
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.05)  # the kernel is not done with the processes that were in it


def limit_file(folder: Path) -> Path | None:
    files = (folder / name for name in ("memory.max", "memory.limit_in_bytes"))
    return next((file for file in files if file.exists()), None)


@contextlib.contextmanager
def running(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.communicate()


def hear(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"it died with {process.wait()}"
    return json.loads(line) if line.startswith("{") else line.strip()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.mark.parametrize("name", LARGER)
def test_another_process_gets_its_memory_in_the_middle_of_a_token(name: str, tmp_path: Path, group: Path) -> None:
    folder, store = save_tiny(name, tmp_path / name, torch.bfloat16, **LARGER[name]), tmp_path / "store"
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    reference = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    generated = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    expected = reference.generate(torch.tensor(PROMPT), **generated)[0].tolist()
    del reference
    penstock.load(folder, store=store, weights_format="as-is").penstock.close()  # packed outside of the group
    with running(CHILD, group / "cgroup.procs", folder, store, PROMPT, TOKENS) as child:
        first = hear(child)
        assert first["tokens"] == expected
        assert first["resident"] > 160 * MiB, "all of it must be in memory, or the test shows nothing"
        state = read_memory_group(group)
        used = state.used if state else psutil.Process(child.pid).memory_full_info().uss
        file = limit_file(group)
        assert file is not None
        file.write_text(str(used + ROOM))
        rss = psutil.Process(child.pid).memory_info().rss
        tell(child)
        assert hear(child) == {"paused": True}
        with running(TAKE, group / "cgroup.procs", HOG) as other:
            assert hear(other) == "taken"
            deadline = time.monotonic() + 1
            while (left := psutil.Process(child.pid).memory_info().rss) > rss - (HOG - ROOM):
                assert child.poll() is None, "it was killed"
                assert time.monotonic() < deadline, f"{(rss - left) >> 20} MiB were given back within a second"
                time.sleep(0.01)
            tell(child)
            short = hear(child)
            assert short["tokens"] == expected
            assert short["floor"] <= short["limit"] < first["limit"]
            tell(child)
            assert hear(child)["tokens"] == expected
            tell(other)
        deadline = time.monotonic() + 60
        while True:
            tell(child)
            grown = hear(child)
            assert grown["tokens"] == expected
            if grown["resident"] > first["resident"] - (HOG - ROOM) // 2:
                break
            assert time.monotonic() < deadline, f"it does not grow back: {grown}"
