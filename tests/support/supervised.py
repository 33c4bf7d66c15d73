"""Plays many cases in processes: one that dies or hangs is a finding, and the next goes on."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

TOGETHER = 40
"""Cases that one process plays."""
BEGIN = "begin"

Case = Any
"""Names a case, as JSON has it: a seed, say."""


def work(
    cases: Sequence[Case], play: Callable[[Case], dict[str, Any]], prepare: Callable[[Case], object] = lambda _: None
) -> None:
    """Play ``cases`` here, after all are prepared; two lines of JSON on stdout for each."""
    for case in cases:
        prepare(case)
    for case in cases:
        print(json.dumps({BEGIN: case}), flush=True)
        began = time.monotonic()
        report = play(case)
        print(json.dumps({"case": case, "seconds": round(time.monotonic() - began, 1), **report}), flush=True)


def play_all(module: str, cases: Sequence[Case], log: Path | None, *, hangs: float) -> list[dict[str, Any]]:
    """Play ``cases`` by ``python -m MODULE --work CASES``, and write a line for each to ``log``. Returns the lines.

    A process without a line for ``hangs`` seconds counts as one that hangs. Cases that are in ``log`` are not played.
    """
    lines = _logged(log)
    done = {json.dumps(line["case"]) for line in lines}
    left = [case for case in cases if json.dumps(case) not in done]
    while left:
        for line in _play_some(module, left[:TOGETHER], hangs):
            left.remove(line["case"])
            lines.append(line)
            if line.get("finding"):
                print(line["case"], line.get("where", ""), line["finding"], flush=True)
            if log is not None:
                with log.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    return lines


def _play_some(module: str, cases: Sequence[Case], hangs: float) -> Iterator[dict[str, Any]]:
    """Play ``cases`` in a process, up to one with which it dies or hangs; a line for each that was begun."""
    command = [sys.executable, "-m", module, "--work", json.dumps(cases)]
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryDirectory() as cache:
        surroundings = os.environ | {"XDG_CACHE_HOME": cache, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=surroundings)
        try:
            running = None
            for text in _lines(child, hangs):
                line = json.loads(text)
                running = line.get(BEGIN)
                if running is None:
                    yield line
            if running is not None:
                errors.seek(0)
                said = errors.read()[-2000:]
                yield {"case": running, "where": "process", "finding": f"it died ({child.poll()}) or hangs: {said}"}
            elif child.wait():
                errors.seek(0)
                raise RuntimeError(f"the cases {cases} cannot be played: {errors.read()[-2000:]}")
        finally:
            child.kill()
            child.wait()


def _lines(child: "subprocess.Popen[str]", hangs: float) -> Iterator[str]:
    """The lines of JSON that ``child`` writes, until it ends, or writes none for too long."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=hangs)
        except queue.Empty:
            return
        if not line:
            return
        if line.startswith("{"):
            yield line


def _logged(log: Path | None) -> list[dict[str, Any]]:
    if log is None or not log.is_file():
        return []
    return [json.loads(line) for line in log.read_text().splitlines()]
