"""Cached figures of finished runs, in one small file for this machine, from which the next plan learns."""

from collections.abc import Sequence
from typing import Literal

import xxhash
from pydantic import Field, ValidationError

from ...tiering.policy.lessons import PerToken, Run
from . import cachefile
from .timings import signature_of

MOST, MOST_OF_A_MODEL = 128, 8
"""Runs that are kept, in all and of each model; the oldest go first."""

_Seconds = Field(ge=0, le=1e6, allow_inf_nan=False)
_Taken = Field(ge=1e-9, le=1e6, allow_inf_nan=False)


class _Run(cachefile.Strict):
    """A run of ``model``; seconds and bytes are those of a token."""

    model: str = Field(max_length=64)
    when: float = Field(ge=0, le=1e11, allow_inf_nan=False)
    budget: int = Field(gt=0, le=1 << 60)
    seconds: float = _Taken
    stalled: float = _Seconds
    read_seconds: float = _Seconds
    bytes_read: float = Field(ge=0, le=1e18, allow_inf_nan=False)
    fast: float = _Taken
    slow: float = _Taken
    beside: bool
    battery: bool = False

    def as_run(self) -> Run:
        token = PerToken(self.seconds, self.stalled, self.read_seconds, self.bytes_read)
        return Run(self.when, self.budget, token, self.fast, self.slow, self.beside, self.battery)


class _RunsFile(cachefile.Strict):
    version: Literal[1] = 1
    holds_for: str
    runs: tuple[_Run, ...] = Field(max_length=MOST)


def name_of(parts: Sequence[object]) -> str:
    """The name of a model as it is packed, placed and set up, under which its runs are kept."""
    return xxhash.xxh3_64_hexdigest(repr(parts).encode())


def load(model: str, threads: int | str) -> list[Run]:
    """The runs of ``model`` that are kept for this machine and ``threads``, the oldest first."""
    return [run.as_run() for run in _read(signature_of(threads)) if run.model == model]


def keep(model: str, threads: int | str, run: Run) -> None:
    """Keep ``run`` of ``model``, if that can be and its figures are possible."""
    holds_for = signature_of(threads)
    figures = run.token._asdict() | {"fast": run.fast, "slow": run.slow, "battery": run.battery}
    try:
        new = _Run(model=model, when=run.when, budget=run.budget, beside=run.beside, **figures)
    except ValidationError:
        return
    kept = _read(holds_for)
    same = [each for each in kept if each.model == model][-MOST_OF_A_MODEL + 1 :]
    others = [each for each in kept if each.model != model][-(MOST - MOST_OF_A_MODEL) :]
    text = _RunsFile(holds_for=holds_for, runs=(*others, *same, new)).model_dump_json(indent=1)
    cachefile.write(_file(holds_for), text)


def _read(holds_for: str) -> tuple[_Run, ...]:
    try:
        found = _RunsFile.model_validate_json(cachefile.read(_file(holds_for)) or b"")
    except ValidationError:
        return ()
    return found.runs if found.holds_for == holds_for else ()


def _file(holds_for: str) -> str:
    return f"runs-{xxhash.xxh3_64_hexdigest(holds_for.encode())}.json"
