"""Runs of bench/decode.py, each a process of its own under a real cap with the page cache dropped before it."""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cap import UNCAPPED, drop_page_cache, run_capped
from drive import drive_speed

from penstock.tiering.units import format_size, parse_size

_DECODE = Path(__file__).with_name("decode.py")
_WORKING = 512 << 20
_DRIVE_DEPTH = 4  # reads in flight while the drive is measured


class RunFailed(Exception):
    """A run ended with a status other than 0. Status -9 means that it outgrew its cap and was killed."""


class Runner:
    """Runs ``model`` in any engine. ``store`` holds penstock's bundle."""

    def __init__(self, model: Path, *, store: str, gguf: Path | None, depth: int | None) -> None:
        self.model, self._store, self._gguf, self._depth = model, store, gguf, depth
        self._reads: tuple[Path, list[str]] | None = None

    def run(
        self,
        mode: str,
        tokens: int,
        *,
        cap: int,
        host_memory: int | str = "auto",
        prompt: int = 64,
        settings: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Run bench/decode.py under ``cap`` bytes, and give back what it prints. ``mode`` may also be "compute":
        penstock without a cap, with everything in memory. ``settings`` are further settings of penstock. For
        penstock without any, ``drive`` is the speed of the drive alone, measured before and after. Raises RunFailed."""
        further = ["--set", *(f"{name}={value}" for name, value in settings.items())] if settings else []
        if mode == "compute":
            found = self._child("penstock", tokens, UNCAPPED, self.everything(), prompt, "--warm", *further)
            return found | {"mode": mode}
        if mode == "penstock" and further:
            return self._child(mode, tokens, cap, host_memory, prompt, *further)
        if mode != "penstock":
            return self._child(mode, tokens, UNCAPPED if mode == "ram" else cap, "auto", prompt)
        before = self._drive()
        found = self._child(mode, tokens, cap, host_memory, prompt)
        reads = Path(found["bundle"]), found.pop("streamed")
        self._reads = reads if reads[1] or found["expert_count"] else None
        speeds = [speed for speed in (before, self._drive()) if speed]
        return found | {"drive": sum(speeds) / len(speeds) if speeds else None, "drive_readings": speeds}

    def everything(self) -> int:
        """A budget in bytes that holds the whole model."""
        return self.model_bytes + _WORKING

    @property
    def model_bytes(self) -> int:
        """Bytes of the checkpoint's weights."""
        return sum(file.stat().st_size for file in self.model.glob("*.safetensors"))

    def _drive(self) -> float | None:
        if self._reads is None:  # before the first run nothing is known of the reads; or there are none
            return None
        bundle, streamed = self._reads
        return drive_speed(bundle, streamed, depth=self._depth or _DRIVE_DEPTH)

    def _child(
        self, mode: str, tokens: int, cap: int, host_memory: int | str, prompt: int, *more: str
    ) -> dict[str, Any]:
        command = [sys.executable, str(_DECODE), mode, str(self.model), str(tokens), "--prompt", str(prompt), *more]
        if mode == "penstock":
            command += ["--host-memory", str(host_memory), "--store", self._store]
            command += ["--io-depth", str(self._depth)] if self._depth else []
        if mode == "llama.cpp" and self._gguf:
            command += ["--gguf", str(self._gguf)]
        drop_page_cache()
        ended = run_capped(command, cap)
        if ended.status:
            limit = "no cap" if cap == UNCAPPED else f"a cap of {format_size(cap)}"
            raise RunFailed(f"{mode} ended with status {ended.status} under {limit}")
        found: dict[str, Any] = json.loads(ended.output.splitlines()[-1])
        return found | {"group_peak_bytes": ended.peak, "cap": None if cap == UNCAPPED else cap}


def take_turns(modes: Sequence[str], number: int) -> list[str]:
    """The order of round ``number``. Every round begins with another mode, so that none always follows the same."""
    start = number % len(modes)
    return [*modes[start:], *modes[:start]]


def print_run(found: dict[str, Any]) -> None:
    """Print one line on a run to stderr, for people who wait."""
    speed = f"{found['tokens_per_second']:.3f} tokens/s, " if "tokens_per_second" in found else ""
    drive = f", drive {found['drive'] / 1e9:.2f} GB/s" if found.get("drive") else ""
    print(f"{found['mode']}: {speed}prompt {found['prompt_s']:.2f} s{drive}", file=sys.stderr, flush=True)


def make_parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Make a parser with the options of all comparisons."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a checkpoint folder")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--gguf", type=Path, help="the same model for llama.cpp (default: llama.cpp is left out)")
    parser.add_argument("--store", help="folder for the bundle, on the drive to be measured (default: a temporary one)")
    parser.add_argument("--io-depth", type=int, help="reads in flight (default: chosen by penstock)")
    parser.add_argument("--json", type=Path, help="keeps every run, rewritten after each")
    parser.add_argument("--markdown", type=Path, help="the tables, for the documentation")
    return parser


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except RunFailed as error:
        raise SystemExit(str(error)) from error


@contextmanager
def open_runner(options: argparse.Namespace) -> Iterator[Runner]:
    """Open a Runner for parsed ``options``. A run that fails ends the command, in one line."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as scratch, _in_one_line():
        yield Runner(options.model, store=options.store or scratch, gguf=options.gguf, depth=options.io_depth)


def size(text: str) -> int:
    """Read a size from the command line."""
    return parse_size(text)
