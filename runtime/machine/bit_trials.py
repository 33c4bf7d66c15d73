"""Which numbers of rows may be rounded up, and what may be computed in parts, without changing a bit: kept, so that a
first prompt need not try hundreds of them.

They hold for one processor, torch, transformers and setting of torch's library.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import transformers
import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from ...kernels.machine.machine import processor
from . import cachefile

MOST = 10_000
"""Verdicts that are kept; the oldest go first."""

_SETTINGS = ("ONEDNN_", "DNNL_", "MKL_", "OMP_", "ATEN_", "TORCH_")


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    version: Literal[1] = 1
    holds_for: str
    verdicts: dict[str, bool]


def load(into: dict[str, bool]) -> None:
    """Add to ``into`` what is known of this machine; what is there stays."""
    for key, verdict in _read(signature()).items():
        into.setdefault(key, verdict)


def keep(verdicts: Mapping[str, bool]) -> Path | None:
    """Keep ``verdicts`` beside those that are kept, if that is anything new; where, None if nothing was written."""
    holds_for = signature()
    known = _read(holds_for)
    if known.items() >= verdicts.items():
        return None
    both = known | dict(verdicts)
    newest = dict(list(both.items())[-MOST:])
    return cachefile.write(_name(holds_for), _File(holds_for=holds_for, verdicts=newest).model_dump_json(indent=1))


def _read(signature: str) -> dict[str, bool]:
    try:
        found = _File.model_validate_json(cachefile.read(_name(signature)) or b"")
    except ValidationError:
        return {}
    return found.verdicts if found.holds_for == signature else {}


def _name(signature: str) -> str:
    return f"rows-{xxhash.xxh3_64_hexdigest(signature.encode())}.json"


def signature() -> str:
    """What results and times of products hold for: the processor, the libraries, and how they are set."""
    name, flags = processor(Path("/proc/cpuinfo"))
    settings = sorted(f"{key}={value}" for key, value in os.environ.items() if key.startswith(_SETTINGS))
    versions = f"torch {torch.__version__} {torch.__config__.show()} transformers {transformers.__version__}"
    return "\n".join((name, " ".join(sorted(flags)), versions, *settings))
