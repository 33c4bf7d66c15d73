"""The compiled half of the kernels, if it was compiled at installation and this processor can run it."""

import ctypes
import importlib.util
from collections.abc import Mapping
from ctypes import c_double, c_float, c_int, c_long, c_void_p
from typing import Any

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


def _compiled() -> ctypes.CDLL | None:
    found = importlib.util.find_spec("penstock.kernels._native")
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    _declare(library, _ANYWHERE, None)
    _declare(library, _ANYWHERE_TELLING, c_int)
    return library


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


COMPILED = _compiled()
"""attention.c, bounds.c, certify.c, kv_quantised.c, and what any processor can run of lossless.c; None where nothing
was compiled."""

LIBRARY = _library()
"""blocks.c, lossless.c, nest.c, nested.c, products.c, quantise.c, symmetric.c and weighted_sum.c; None where they
cannot be used."""

PACKED = LIBRARY if LIBRARY is not None and LIBRARY.penstock_packed_available() else None
"""packed.c; it asks more of the processor."""
