"""Plays many cases in processes: one that dies or hangs is a finding, and the next goes on."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HANGS = 200.0
"""Seconds without a line after which a process counts as one that hangs."""
TOGETHER = 40
"""Cases that one process plays."""
BEGIN = "begin"


def work(seeds: list[int]) -> None:
    """Play the cases of ``seeds`` here; two lines of JSON on stdout for each."""
    from .case import Case
    from .play import play

    for seed in seeds:
        print(json.dumps({BEGIN: seed}), flush=True)
        began = time.monotonic()
        case = Case.of(seed)
        with tempfile.TemporaryDirectory() as folder:
            report = play(case, Path(folder) / "case")
        line = {"seed": seed, "seconds": round(time.monotonic() - began, 1), **vars(report)}
        if report.finding:
            line["case"] = str(case)
        print(json.dumps(line), flush=True)


def play_all(seeds: list[int], log: Path | None) -> int:
    """Play the cases of ``seeds``, and write a line for each to ``log``; the number of findings."""
    left = [seed for seed in seeds if seed not in _logged(log)]
    found = 0
    while left:
        for line in _play_some(left[:TOGETHER]):
            left.remove(line["seed"])
            found += bool(line["finding"])
            if line["finding"]:
                print(line["seed"], line["where"], line["finding"], flush=True)
            if log is not None:
                with log.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    return found


def _play_some(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Play ``seeds`` in a process, up to one with which it dies or hangs; a line for each that was begun."""
    command = [sys.executable, "-m", "tests.fuzz", "--work", *map(str, seeds)]
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryDirectory() as cache:
        surroundings = os.environ | {"XDG_CACHE_HOME": cache, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=surroundings)
        try:
            running = None
            for text in _lines(child):
                line = json.loads(text)
                running = line.get(BEGIN)
                if running is None:
                    yield line
            if running is not None:
                errors.seek(0)
                yield {"seed": running, "where": "process", "finding": f"it died or hangs: {errors.read()[-2000:]}"}
            elif child.wait():
                errors.seek(0)
                raise RuntimeError(f"the cases {seeds} cannot be played: {errors.read()[-2000:]}")
        finally:
            child.kill()
            child.wait()


def _lines(child: "subprocess.Popen[str]") -> Iterator[str]:
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
            line = lines.get(timeout=HANGS)
        except queue.Empty:
            return
        if not line:
            return
        if line.startswith("{"):
            yield line


def _logged(log: Path | None) -> set[int]:
    if log is None or not log.is_file():
        return set()
    return {json.loads(line)["seed"] for line in log.read_text().splitlines()}
