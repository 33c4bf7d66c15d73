"""The compiled half of the kernels, if it was compiled at installation and this processor can run it."""

import ctypes
import importlib.util
import platform
from collections.abc import Collection, Mapping
from ctypes import c_char_p, c_double, c_float, c_int, c_long, c_void_p
from dataclasses import dataclass
from typing import Any

import torch  # noqa: F401 - its OpenMP library is then the one that the kernels find, on systems without one too

_SIGNATURES: dict[str, list[Any]] = {
    "penstock_products": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_int],
    "penstock_add_weighted": [c_long] + [c_void_p] * 4 + [c_long, c_int],
    "penstock_products_int8": [c_long] + [c_void_p] * 3 + [c_long] * 3 + [c_int],
    "penstock_products_int4": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_int],
    "penstock_products_nested": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_void_p, c_int],
    "penstock_decode_nested": [c_void_p] * 2 + [c_long] * 4 + [c_int],
    "penstock_nest": [c_void_p] * 5 + [c_long] * 4 + [c_int],
    "penstock_quantise_int8": [c_void_p] * 4 + [c_long] * 2 + [c_void_p] + [c_int] * 2,
    "penstock_quantise_int4": [c_void_p] * 5 + [c_long] * 3 + [c_void_p] + [c_int] * 3,
    "penstock_decode_int8": [c_void_p] * 2 + [c_long] * 4 + [c_int],
    "penstock_decode_int4": [c_void_p] * 2 + [c_long] * 5 + [c_int],
    "penstock_block_products": [c_long] + [c_void_p] * 3 + [c_long] * 3 + [c_void_p] * 2 + [c_int],
    "penstock_decode_blocks": [c_void_p] * 2 + [c_long] * 3 + [c_void_p] + [c_int] * 2,
}
"""Of functions that return nothing."""
_TELLING: dict[str, list[Any]] = {
    "penstock_lossless_products": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_int],
}
"""Of functions that return whether they could."""
_ANYWHERE: dict[str, list[Any]] = {
    "penstock_lossless_encode": [c_void_p] + [c_long] * 2 + [c_void_p] * 3,
    "penstock_scores": [c_long] + [c_void_p] * 3 + [c_long] * 6 + [c_float] + [c_int] * 3,
    "penstock_weigh": [c_long] + [c_void_p] * 3 + [c_long] * 6 + [c_int] * 3,
    "penstock_kv_scores": [c_long, c_void_p]
    + [c_long] * 4
    + [c_void_p, c_long, c_int, c_float, c_void_p]
    + [c_long] * 2
    + [c_int] * 2,
    "penstock_kv_weigh": [c_long, c_void_p]
    + [c_long] * 4
    + [c_void_p, c_long, c_int, c_void_p]
    + [c_long] * 2
    + [c_int] * 2,
    "penstock_kv_decode": [c_void_p] + [c_long] * 4 + [c_int, c_void_p] + [c_int] * 3,
    "penstock_bounds": [c_void_p]
    + [c_long] * 2
    + [c_void_p]
    + [c_long] * 4
    + [c_int]
    + [c_float] * 3
    + [c_void_p] * 3
    + [c_int] * 2,
    "penstock_page_masses": [c_void_p] + [c_long] * 5 + [c_void_p],
    "penstock_shares": [c_void_p] + [c_long] * 2 + [c_void_p] * 2 + [c_int],
    "penstock_omitted": [c_void_p] * 2 + [c_long] * 2 + [c_void_p] * 2,
    "penstock_needed": [c_void_p] * 4 + [c_long] * 2 + [c_void_p, c_double] + [c_void_p] * 2 + [c_int],
}
"""Of functions that any processor can run, and that return nothing."""
_ANYWHERE_TELLING: dict[str, list[Any]] = {
    "penstock_lossless_decode": [c_void_p] + [c_long] * 5 + [c_void_p] + [c_int] * 2,
    "penstock_lossless_way": [],
    "penstock_bounds_wide": [],
}
"""The same, of functions that return a number."""
_ABOUT: dict[str, list[Any]] = {"penstock_openmp": [], "penstock_feature": [c_int, c_void_p]}
"""What is asked of the build and of the processor."""


def load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    found = importlib.util.find_spec("penstock.kernels._native")
    if found is None or found.origin is None:
        return None, "nothing was compiled at installation: install again with GCC or Clang, pip install -v says more"
    try:
        library = ctypes.CDLL(found.origin)
        _declare(library, _ANYWHERE, None)
        _declare(library, _ANYWHERE_TELLING, c_int)
        _declare(library, _ABOUT, c_int)
        library.penstock_compiler.restype = c_char_p
    except (OSError, AttributeError) as error:
        return None, f"what was compiled at installation cannot be loaded: {error}; install again"
    return library, ""


def _library() -> ctypes.CDLL | None:
    if COMPILED is None or not COMPILED.penstock_available():
        return None
    _declare(COMPILED, _SIGNATURES, None)
    _declare(COMPILED, _TELLING, c_int)
    return COMPILED


def _declare(library: ctypes.CDLL, signatures: Mapping[str, list[Any]], returns: Any) -> None:
    for name, types in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = returns, types


COMPILED, _WHY_NOT = load()
"""attention.c, bounds.c, certify.c, kv_quantised.c, and what any processor can run of lossless.c; None where nothing
was compiled."""

LIBRARY = _library()
"""blocks.c, lossless.c, nest.c, nested.c, products.c, quantise.c, symmetric.c and weighted_sum.c; None where they
cannot be used."""

PACKED = LIBRARY if LIBRARY is not None and LIBRARY.penstock_packed_available() else None
"""packed.c; it asks more of the processor."""


PRODUCTS_NEED = ("avx512bf16", "avx512bw", "avx512vl")
"""Features of a processor without which products come from torch; products.c and packed.c ask for them."""
PACKED_NEED = (*PRODUCTS_NEED, "avx512vbmi")


@dataclass(frozen=True, slots=True)
class Kernels:
    """Which compiled kernels are in use here.

    ``compiler`` has its version, and is empty where there are no kernels. ``attention`` stands for all that any
    processor can run (attention, pages of KV, lossless decoding), ``products`` for products of a few rows with weights,
    ``packed`` for those with packed weights. ``features`` are those of this processor that the kernels know to use.
    ``missing`` says why not all kernels are in use, or not on several threads: one sentence each, empty if all are.
    """

    compiler: str
    openmp: bool
    attention: bool
    products: bool
    packed: bool
    features: tuple[str, ...]
    missing: tuple[str, ...]


def describe() -> Kernels:
    """Which compiled kernels are in use in this process, and why not all of them."""
    features, openmp = {}, False
    if COMPILED is not None:
        features, openmp = _features(COMPILED), COMPILED.penstock_openmp() > 0
    return Kernels(
        compiler=COMPILED.penstock_compiler().decode() if COMPILED is not None else "",
        openmp=openmp,
        attention=COMPILED is not None,
        products=LIBRARY is not None,
        packed=PACKED is not None,
        features=tuple(name for name, there in features.items() if there),
        missing=tuple(explain(_WHY_NOT, openmp=openmp, features=features, machine=platform.machine())),
    )


def explain(why_not: str, *, openmp: bool, features: Mapping[str, bool], machine: str) -> list[str]:
    """Why kernels are not in use: ``why_not`` if there are none at all; else by OpenMP, and by which ``features`` of
    the processor are there (none are known where it is not x86-64). Pure."""
    if why_not:
        return [why_not]
    reasons = []
    if not features:
        reasons.append(f"products of weights come from torch: their kernels are for x86-64, this is {machine}")
    elif lacking := _lacking(PRODUCTS_NEED, features):
        reasons.append(f"products of weights come from torch: this processor lacks {lacking}")
    elif lacking := _lacking(PACKED_NEED, features):
        reasons.append(f"weights are not packed for products: this processor lacks {lacking}")
    if not openmp:
        reasons.append("the kernels run on one thread: they were compiled without OpenMP")
    return reasons


def _lacking(needed: Collection[str], features: Mapping[str, bool]) -> str:
    return ", ".join(name for name in needed if not features.get(name))


def _features(library: ctypes.CDLL) -> dict[str, bool]:
    """Of each feature that the kernels know to use, whether this processor has it."""
    found: dict[str, bool] = {}
    name = c_char_p()
    while (there := library.penstock_feature(len(found), ctypes.byref(name))) >= 0:
        found[(name.value or b"").decode()] = there > 0
    return found
