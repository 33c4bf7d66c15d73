"""Cached trials: which row counts can be padded, split or divided without changing bits.

They spare a first prompt hundreds of trials. They hold for one processor, one version of torch and of transformers, and
one setting of torch's library.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import transformers
import xxhash
from pydantic import ValidationError

from ...kernels.machine.machine import read_processor
from . import cachefile

MOST = 10_000
"""Trials that are kept; the oldest go first."""
_LARGEST = 8 << 20
"""Bytes: a trial takes a few hundred, and so does what it holds for."""

_SETTINGS = ("ONEDNN_", "DNNL_", "MKL_", "OMP_", "ATEN_", "TORCH_", "PENSTOCK_")


class _TrialsFile(cachefile.Strict):
    version: Literal[1] = 1
    holds_for: str
    verdicts: dict[str, bool]


def load(into: dict[str, bool]) -> None:
    """Add to ``into`` the results that are kept for this machine; those that are there stay."""
    for key, equal in _read(signature()).items():
        into.setdefault(key, equal)


def keep(trials: Mapping[str, bool]) -> Path | None:
    """Keep the results of ``trials``, by what was tried, beside those that are kept. Returns the file; None if nothing
    is new, or it cannot be written."""
    holds_for = signature()
    known = _read(holds_for)
    if known.items() >= trials.items():
        return None
    both = known | dict(trials)
    newest = dict(list(both.items())[-MOST:])
    return cachefile.write(
        _name(holds_for), _TrialsFile(holds_for=holds_for, verdicts=newest).model_dump_json(indent=1)
    )


def _read(signature: str) -> dict[str, bool]:
    try:
        found = _TrialsFile.model_validate_json(cachefile.read(_name(signature), _LARGEST) or b"")
    except ValidationError:
        return {}
    return found.verdicts if found.holds_for == signature else {}


def _name(signature: str) -> str:
    return f"rows-{xxhash.xxh3_64_hexdigest(signature.encode())}.json"


def signature() -> str:
    """Names everything that bits and times of products depend on: the processor, the libraries, their settings."""
    name, flags = read_processor(Path("/proc/cpuinfo"))
    settings = sorted(f"{key}={value}" for key, value in os.environ.items() if key.startswith(_SETTINGS))
    versions = f"torch {torch.__version__} {torch.__config__.show()} transformers {transformers.__version__}"
    return "\n".join((name, " ".join(sorted(flags)), versions, *settings))
