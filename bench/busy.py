"""Decoding in memory beside busy programs of another session, as a browser is: tokens/s of each engine, in turn.

    python bench/busy.py MODEL [--gguf FILE] [--programs 0 1 2] [--rounds 5] [--tokens 24]

Every engine is a process of its own that keeps its model, and sleeps while another one is measured. A busy program
computes all the time, in a session of its own: the system shares cores out between sessions first. "never yields" is
penstock that takes no notice of other programs. A block beside which others used more than a tenth of a core is
measured again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from engines import open_engine
from figures import Spread
from report import Table, publish
from rounds import Runner, take_turns
from tokens import fixed_tokens

from penstock.kernels.machine.core_use import read_core_use
from penstock.runtime.machine import contention

UNYIELDING = "penstock, never yields"
PROMPT, SETTLED = 32, 8  # tokens before the first block, and at the begin of a block, while an engine finds its way
_FOREIGN = 0.1  # cores that others may use beside a block
_TRIES = 20
_BUSY = "while True: pass"


def serve(engine: str, options: argparse.Namespace) -> None:
    """A child: answer each line on standard input, a number of tokens, with the median seconds of one."""
    mode = "penstock" if engine == UNYIELDING else engine
    if engine == UNYIELDING:
        contention.CONTENTION._read = lambda: None
    budget = Runner(options.model, store=options.store, gguf=None, depth=None).everything()
    settings: dict[str, Any] = {"host_memory": budget, "store": options.store, "weights_format": options.format}
    threads, longest = torch.get_num_threads(), 4096
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_engine(
            mode, options.model, longest=longest, threads=threads, scratch=scratch, gguf=options.gguf, settings=settings
        ) as model,
        torch.no_grad(),
    ):
        ids = fixed_tokens(longest, model.vocabulary)
        model.feed([ids.pop() for _ in range(PROMPT)])
        print("ready", flush=True)
        for line in sys.stdin:
            seconds = []
            for _ in range(SETTLED + int(line)):
                begin = time.perf_counter()
                model.feed([ids.pop()])
                seconds.append(time.perf_counter() - begin)
            print(statistics.median(seconds[SETTLED:]), flush=True)


class Engine:
    """A child that is one engine."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-W", "ignore", __file__, "--serve", name, *arguments]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._answer() != "ready":
            raise SystemExit(f"{name} did not start")

    def measure(self, tokens: int) -> float:
        """Median seconds of a token."""
        assert self.process.stdin is not None
        print(tokens, file=self.process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def busy_programs(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run ``count`` of them, each in a session of its own."""
    programs = [subprocess.Popen([sys.executable, "-c", _BUSY], start_new_session=True) for _ in range(count)]
    try:
        time.sleep(0.5 if count else 2.5)  # until all have noticed
        yield programs
    finally:
        for program in programs:
            program.kill()
            program.wait()


def processor_seconds(process: int) -> float:
    """Seconds that a process has run."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_alone(engine: Engine, tokens: int, programs: Sequence[subprocess.Popen[bytes]]) -> tuple[float, float]:
    """Measure until nothing else runs beside: seconds of a token, and the cores that others used meanwhile."""
    known = [engine.process.pid, *(program.pid for program in programs)]
    best = (0.0, float("inf"))
    for _ in range(_TRIES):
        before, own = read_core_use(), sum(map(processor_seconds, known))
        seconds = engine.measure(tokens)
        after = read_core_use()
        assert before is not None
        assert after is not None
        used = after.others - before.others - (sum(map(processor_seconds, known)) - own)
        best = min(best, (seconds, used / (after.now - before.now)), key=lambda found: found[1])
        if best[1] <= _FOREIGN:
            break
    return best


def measure(engines: Sequence[Engine], options: argparse.Namespace) -> list[dict[str, Any]]:
    """All blocks of all rounds."""
    blocks = []
    by_name = {engine.name: engine for engine in engines}
    for number in range(options.rounds):
        for count in options.programs:
            for name in take_turns([*by_name], number):
                with busy_programs(count) as programs:
                    seconds, foreign = measure_alone(by_name[name], options.tokens, programs)
                blocks.append({"engine": name, "programs": count, "seconds": seconds, "foreign": foreign})
                print(json.dumps(blocks[-1]), file=sys.stderr, flush=True)
    return blocks


def main() -> None:
    """Measure, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--format", default="as-is", help="penstock's format of weights")
    parser.add_argument("--gguf", type=Path, help="the same model for llama.cpp (default: llama.cpp is left out)")
    parser.add_argument("--programs", type=int, nargs="+", default=[0, 1, 2], help="busy programs beside")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24, help="tokens of a block")
    parser.add_argument("--store", help="folder for the bundle (default: a temporary one)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options)
        return
    names = ["penstock", UNYIELDING, "ram", *(["llama.cpp"] if options.gguf else [])]
    with ExitStack() as stack:
        store = options.store or stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-"))
        arguments = [str(options.model), "--format", options.format, "--store", store]
        arguments += ["--gguf", str(options.gguf)] if options.gguf else []
        engines = [Engine(name, arguments) for name in names]
        for engine in engines:
            stack.callback(engine.close)
        blocks = measure(engines, options)
    report(names, blocks, options)


def report(names: Sequence[str], blocks: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Show the medians, and what remains of the quiet speed."""

    def speeds(name: str, count: int) -> list[float]:
        return [1 / each["seconds"] for each in blocks if (each["engine"], each["programs"]) == (name, count)]

    rows = []
    for name in names:
        quiet = Spread.of(speeds(name, options.programs[0]))
        cells = [f"transformers ({name})" if name == "ram" else name, quiet.text(2)]
        for count in options.programs[1:]:
            found = Spread.of(speeds(name, count))
            cells.append(f"{found.text(2)}, {found.median / quiet.median:.2f} of it")
        rows.append(tuple(cells))
    columns = ("tokens/s", *(f"{count} busy programs" for count in options.programs))
    title = f"{options.model.name}, {options.format}, in memory, {options.rounds} rounds"
    publish([Table(title, columns, rows)], {"blocks": blocks}, json_file=options.json, markdown=options.markdown)


if __name__ == "__main__":
    main()
