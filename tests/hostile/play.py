"""Plays one case: an honest file is changed and used; equal results, one clear error, or a finding."""

import random
import resource
import shutil
import tempfile
import traceback
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch

from penstock.tiering.errors import PenstockError
from tests.hostile.bundles import BundleKind
from tests.hostile.checkpoints import CHECKPOINTS
from tests.hostile.kind import Kind, Result, close, equal
from tests.hostile.stores import RunKind, StoreKind
from tests.support.limited import TookTooLong, limited

KINDS: dict[str, Kind] = {
    "manifest-as-is": BundleKind("qwen3_moe", "as-is"),
    "manifest-striped": BundleKind("qwen3_moe", "as-is", striped=True),
    "manifest-stacked": BundleKind("qwen3_moe", "stacked"),
    "manifest-lossless": BundleKind("llama", "lossless"),
    "manifest-int4": BundleKind("llama", "int4"),
    "planes-lossless": BundleKind("llama", "lossless", planes=True),
    "planes-stacked": BundleKind("qwen3_moe", "stacked", planes=True),
    "planes-int4": BundleKind("llama", "int4", planes=True),
    "planes-int8": BundleKind("llama", "int8", planes=True),
    **CHECKPOINTS,
    "prefix": StoreKind("llama"),
    "prefix-window": StoreKind("gemma3_text"),
    "prefix-paged": StoreKind("llama", paged=True),
    "small": StoreKind("llama", small=True),
    "routes": RunKind(recording=False),
    "recording": RunKind(recording=True),
}
WAYS = 5
"""In how many ways files are used."""
TOO_LONG = 20
"""Seconds that a case may take."""
TOO_MUCH = 1 << 30
"""Bytes of memory beyond what the honest file takes."""
_ADDRESSES = 24 << 30


def play(case: list[Any]) -> dict[str, Any]:
    """Play case ``[kind, seed]``. Returns what was done, the outcome, and the finding if there is one."""
    name, seed = case
    kind = KINDS[name]
    honest, results, usual = _honest(name)
    way = seed % WAYS
    rng = random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(place) / "copy"
        shutil.copytree(honest, folder, symlinks=True)
        report: dict[str, Any] = {"done": kind.mutate(rng, folder), "outcome": "", "finding": ""}
        _begin_peak()
        try:
            with limited(TOO_LONG):
                result = kind.use(folder, way)
            if equal(result, results[way]):
                report["outcome"] = "equal"
            elif kind.is_right(folder, result, way):
                report["outcome"] = "another"
            else:
                report["finding"] = "other results without an error"
        except PenstockError as error:
            report["outcome"], report["said"] = "refused", str(error).replace(place, "")
            if "\n" in str(error) or len(str(error)) > 2000:
                report["finding"] = "no clear line"
        except TookTooLong:
            report["finding"] = f"it takes more than {TOO_LONG} s: {traceback.format_exc()[-1500:]}"
        except BaseException:
            report["finding"] = traceback.format_exc()[-2500:]
        if (grown := _peak() - usual) > TOO_MUCH and not report["finding"]:
            report["finding"] = f"it takes {grown >> 20} MiB more than the honest file"
        return report


def prepare(case: list[Any]) -> None:
    """Make the honest files for ``case``. Raises AssertionError where using them gives different results."""
    _honest(case[0])


@cache
def _honest(name: str) -> tuple[Path, list[Result], int]:
    """Honest files of a kind, what using them gives in each way, and the peak of memory meanwhile."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix=f"hostile-{name}-", dir=_scratch().name))
    torch.manual_seed(0)
    KINDS[name].make(folder)
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "copy"
        shutil.copytree(folder, copy)
        if isinstance(KINDS[name], BundleKind):
            BundleKind._move_stripes(next(p for p in (copy / "store").iterdir() if p.is_dir()), copy)
        _begin_peak()
        results = [KINDS[name].use(copy, way) for way in range(WAYS)]
        assert all(close(result, results[0]) for result in results), name
    return folder, results, _peak()


@cache
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory()


def _begin_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The most bytes in memory since ``_begin_peak``."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
