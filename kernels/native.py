"""The compiled half of the kernels, if it was compiled at installation and this processor can run it."""

import ctypes
import importlib.util
from collections.abc import Mapping, Sequence
from ctypes import c_float, c_int, c_long, c_void_p
from typing import Any

_SIGNATURES: Mapping[str, Sequence[Any]] = {
    "penstock_products": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_int],
    "penstock_add_weighted": [c_long] + [c_void_p] * 4 + [c_long, c_int],
    "penstock_products_int8": [c_long] + [c_void_p] * 3 + [c_long] * 3 + [c_int],
    "penstock_products_int4": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_int],
    "penstock_products_nested": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_void_p, c_int],
    "penstock_decode_nested": [c_void_p] * 2 + [c_long] * 4 + [c_int],
    "penstock_quantise_int4": [c_void_p] * 5 + [c_long] * 3 + [c_void_p] + [c_int] * 3,
    "penstock_decode_int8": [c_void_p] * 2 + [c_long] * 4 + [c_int],
    "penstock_decode_int4": [c_void_p] * 2 + [c_long] * 5 + [c_int],
    "penstock_block_products": [c_long] + [c_void_p] * 3 + [c_long] * 3 + [c_void_p] * 2 + [c_int],
    "penstock_decode_blocks": [c_void_p] * 2 + [c_long] * 3 + [c_void_p] + [c_int] * 2,
    "penstock_lossless_encode": [c_void_p] + [c_long] * 2 + [c_void_p] * 3,
}
"""Of functions that return nothing."""
_EVERYWHERE: Mapping[str, Sequence[Any]] = {
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
}
"""The same; on any processor."""
_TELLING: Mapping[str, Sequence[Any]] = {
    "penstock_lossless_decode": [c_void_p] + [c_long] * 5 + [c_void_p, c_int],
    "penstock_lossless_products": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_int],
}
"""Of functions that return whether they could."""


def _compiled() -> ctypes.CDLL | None:
    found = importlib.util.find_spec("penstock.kernels._native")
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    _declare(library, _EVERYWHERE, None)
    if library.penstock_available():
        _declare(library, _SIGNATURES, None)
        _declare(library, _TELLING, c_int)
    return library


def _declare(library: ctypes.CDLL, signatures: Mapping[str, Sequence[Any]], returns: type | None) -> None:
    for name, types in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = returns, types


ATTENTION = _compiled()
"""attention.c and kv_quantised.c; None where nothing was compiled."""

LIBRARY = ATTENTION if ATTENTION is not None and ATTENTION.penstock_available() else None
"""blocks.c, lossless.c, nested.c, products.c, quantise.c and weighted_sum.c; None where they cannot be used."""

PACKED = LIBRARY if LIBRARY is not None and LIBRARY.penstock_packed_available() else None
"""packed.c; it asks more of the processor."""
