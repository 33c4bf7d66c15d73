"""The compiled kernels: which of them this build and this processor can run."""

import ctypes
import functools
import importlib.util
import os
import platform
from collections.abc import Collection, Mapping
from ctypes import c_char_p, c_double, c_float, c_int, c_long, c_void_p
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch  # noqa: F401 - loads its OpenMP library first, so that the kernels use the same one

from . import isa
from .isa import SETTING

_LEVEL: dict[str, list[Any]] = {
    "add_weighted": [c_long] + [c_void_p] * 4 + [c_long, c_int],
    "quantise_int8": [c_void_p] * 4 + [c_long] * 2 + [c_void_p] + [c_int] * 2,
    "quantise_int4": [c_void_p] * 5 + [c_long] * 3 + [c_void_p] + [c_int] * 3,
    "nest": [c_void_p] * 5 + [c_long] * 4 + [c_int],
    "scores": [c_long] + [c_void_p] * 3 + [c_long] * 6 + [c_float] + [c_int] * 2,
    "weigh": [c_long] + [c_void_p] * 3 + [c_long] * 6 + [c_int] * 2,
    "kv_scores": [c_long, c_void_p]
    + [c_long] * 4
    + [c_void_p, c_long, c_int, c_float, c_void_p]
    + [c_long] * 2
    + [c_int],
    "kv_weigh": [c_long, c_void_p] + [c_long] * 4 + [c_void_p, c_long, c_int, c_void_p] + [c_long] * 2 + [c_int],
    "kv_decode": [c_void_p] + [c_long] * 4 + [c_int, c_void_p] + [c_int] * 2,
    "bounds": [c_void_p]
    + [c_long] * 2
    + [c_void_p]
    + [c_long] * 4
    + [c_int]
    + [c_float] * 3
    + [c_void_p] * 3
    + [c_int],
    "page_masses": [c_void_p] + [c_long] * 5 + [c_void_p],
    "products": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_void_p] * 2 + [c_int],
    "turned_products": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_void_p, c_int],
    "products_int8": [c_long] + [c_void_p] * 3 + [c_long] * 3 + [c_void_p, c_int],
    "transpose": [c_void_p] + [c_long] * 2 + [c_void_p, c_long, c_int],
    "decode_int8": [c_void_p] * 2 + [c_long] * 4 + [c_int],
    "products_int4": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_void_p, c_int],
    "decode_int4": [c_void_p] * 2 + [c_long] * 5 + [c_int],
    "products_nested": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_void_p, c_int],
    "decode_nested": [c_void_p] * 2 + [c_long] * 4 + [c_int],
    "block_products": [c_long] + [c_void_p] * 3 + [c_long] * 3 + [c_void_p] * 2 + [c_int],
    "rms_norm": [c_void_p] * 3 + [c_long] * 2 + [c_float] + [c_int] * 2,
    "rotate": [c_void_p, c_long] + [c_void_p] * 3 + [c_long],
    "decode_blocks": [c_void_p] * 2 + [c_long] * 3 + [c_void_p] + [c_int] * 2,
}
"""Signatures of the functions that are compiled for each level and return nothing."""
_LEVEL_WITH_RESULT: dict[str, list[Any]] = {
    "takes_order": [c_long],
    "takes_turned": [c_long],
    "attend_row": [c_void_p] * 5 + [c_long] * 6 + [c_float] + [c_int] * 3,
    "lossless_products": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_void_p] * 2 + [c_int],
    "lossless_decode": [c_void_p] + [c_long] * 5 + [c_void_p, c_int],
}
"""Signatures of the functions that are compiled for each level and return a number."""
_PORTABLE: dict[str, list[Any]] = {
    "penstock_lossless_encode": [c_void_p] + [c_long] * 2 + [c_void_p] * 3,
    "penstock_lossless_lengths": [c_void_p] + [c_long] * 2 + [c_void_p],
    "penstock_shares": [c_void_p] + [c_long] * 2 + [c_void_p] * 2 + [c_int],
    "penstock_omitted": [c_void_p] * 2 + [c_long] * 2 + [c_void_p] * 2,
    "penstock_needed": [c_void_p] * 4 + [c_long] * 2 + [c_void_p, c_double] + [c_void_p] * 2 + [c_int],
}
"""Signatures of functions for any processor that return nothing."""
_PORTABLE_WITH_RESULT: dict[str, list[Any]] = {
    "penstock_lossless_first_damaged": [c_void_p] + [c_long] * 2 + [c_void_p] + [c_long] * 2 + [c_int],
    "penstock_first_left_out": [c_void_p, c_long, c_void_p],
    "penstock_wait_policy": [c_int],
}
"""Signatures of functions for any processor that return a number."""
_BUILD_QUERIES: dict[str, list[Any]] = {"penstock_openmp": [], "penstock_feature": [c_int, c_void_p]}
"""Signatures of functions that describe the build and the processor."""


_ALLOWED = isa.allowed(os.environ.get(SETTING), platform.machine())


def load() -> tuple[ctypes.CDLL | None, str]:
    """Load the compiled library. Returns it, or None and the reason."""
    if not _ALLOWED:
        return None, f"{SETTING} switches them off"
    found = importlib.util.find_spec("penstock.kernels._native")
    if found is None or found.origin is None:
        return None, "nothing was compiled at installation: install again with GCC or Clang, pip install -v says more"
    try:
        library = ctypes.CDLL(found.origin)
        _declare(library, _PORTABLE, None)
        _declare(library, _PORTABLE_WITH_RESULT, c_int)
        _declare(library, _BUILD_QUERIES, c_int)
        library.penstock_compiler.restype = c_char_p
        library.penstock_runs.argtypes = [c_char_p]
    except (OSError, AttributeError) as error:
        return None, f"what was compiled at installation cannot be loaded: {error}; install again"
    return library, ""


def _declare(library: ctypes.CDLL, signatures: Mapping[str, list[Any]], returns: Any) -> None:
    """Set the argument types and the result type of each function of ``library``."""
    for name, types in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = returns, types


class LevelKernels(SimpleNamespace):
    """The compiled functions of one ``level``, by their names without prefix and level. ``find_level`` makes it."""

    level: str


@functools.cache
def find_level(level: str) -> LevelKernels | None:
    """Return the kernels of a ``level``, or None if it is not in RUNS."""
    if level not in RUNS:
        return None
    kernels = LevelKernels(level=level)
    for signatures, returns in ((_LEVEL, None), (_LEVEL_WITH_RESULT, c_int)):
        for name, types in signatures.items():
            function = getattr(COMPILED, f"penstock_{name}_{level}")
            function.restype, function.argtypes = returns, types
            setattr(kernels, name, function)
    return kernels


COMPILED, _WHY_NOT = load()
"""The library with all that any processor can run: certify.c. None if nothing was compiled.
"""

RUNS = tuple(level for level in _ALLOWED if COMPILED is not None and COMPILED.penstock_runs(level.encode()))
"""The levels that were compiled, that this processor runs and that SETTING allows, from the lowest on."""

KERNELS = find_level(RUNS[-1]) if RUNS else None
"""The kernels of the highest of these levels. None if nothing was compiled, or SETTING switches it off."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The compiled kernels that are in use here.

    ``compiler`` is its version, empty if there are no kernels. ``level`` is the one of isa.LEVELS that they have, or
    "none". ``features`` are the features of this processor that the kernels know. ``missing``
    says why some kernels are not in use, or run on one thread: one sentence each, empty if all are in use.
    """

    compiler: str
    level: str
    openmp: bool
    features: tuple[str, ...]
    missing: tuple[str, ...]


def describe() -> Kernels:
    """Describe the compiled kernels in use in this process, with the reasons why some are not."""
    features, openmp = {}, False
    if COMPILED is not None:
        features, openmp = _features(COMPILED), COMPILED.penstock_openmp() > 0
    reasons = explain(
        _WHY_NOT,
        openmp=openmp,
        held=os.environ.get(SETTING, ""),
        not_held=isa.find_not_held(os.environ, platform.machine()),
    )
    return Kernels(
        compiler=COMPILED.penstock_compiler().decode() if COMPILED is not None else "",
        level=KERNELS.level if KERNELS is not None else isa.NONE,
        openmp=openmp,
        features=tuple(name for name, there in features.items() if there),
        missing=tuple(reasons),
    )


def explain(
    why_not: str,
    *,
    openmp: bool,
    held: str = "",
    not_held: Collection[str] = (),
) -> list[str]:
    """Explain why kernels are not in use: a list of reasons. Pure.

    ``why_not`` is the reason if there are no kernels at all. Otherwise the reasons follow from OpenMP. ``held`` is the
    level that SETTING sets, and ``not_held`` are the variables that would hold torch to it too, and are not set.
    """
    if why_not:
        return [why_not]
    reasons = []
    if not_held:
        reasons.append(
            f"torch was imported before Penstock, so {SETTING}={held} does not hold it: import penstock first, or "
            f"set {' '.join(not_held)}"
        )
    if not openmp:
        reasons.append("the kernels run on one thread: they were compiled without OpenMP")
    return reasons


def _features(library: ctypes.CDLL) -> dict[str, bool]:
    """Ask the library for each feature that it knows: name to whether this processor has it."""
    found: dict[str, bool] = {}
    name = c_char_p()
    while (there := library.penstock_feature(len(found), ctypes.byref(name))) >= 0:
        found[(name.value or b"").decode()] = there > 0
    return found
