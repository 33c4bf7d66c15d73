"""The compiled half of the kernels, if it was compiled at installation and this processor can run it."""

import ctypes
import importlib.util
<<<<<<< HEAD
from collections.abc import Mapping
=======
>>>>>>> n6b
from ctypes import c_float, c_int, c_long, c_void_p
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
}
"""Of functions that any processor can run, and that return nothing."""
_ANYWHERE_TELLING: dict[str, list[Any]] = {
    "penstock_lossless_decode": [c_void_p] + [c_long] * 5 + [c_void_p] + [c_int] * 2,
    "penstock_lossless_way": [],
}
"""The same, of functions that return a number."""


<<<<<<< HEAD
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
"""attention.c, and what any processor can run of lossless.c; None where nothing was compiled."""

LIBRARY = _library()
"""blocks.c, lossless.c, nest.c, nested.c, products.c, quantise.c, symmetric.c and weighted_sum.c; None where they
cannot be used."""
=======
_ANYWHERE: dict[str, tuple[Any, list[Any]]] = {
    "penstock_bounds_wide": (c_int, []),
    "penstock_bounds_room": (c_long, []),
    "penstock_bounds": (
        None,
        [c_void_p] + [c_long] * 2 + [c_void_p] + [c_long] * 4 + [c_int] + [c_float] * 3 + [c_void_p] * 3 + [c_int] * 2,
    ),
}
"""Of functions that any processor can run: what they return, and their arguments."""


def _loaded() -> ctypes.CDLL | None:
    found = importlib.util.find_spec("penstock.kernels._native")
    return None if found is None or found.origin is None else ctypes.CDLL(found.origin)


def _library(library: ctypes.CDLL | None) -> ctypes.CDLL | None:
    if library is None or not library.penstock_available():
        return None
    for signatures, returns in ((_SIGNATURES, None), (_TELLING, c_int)):
        for name, types in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = returns, types
    return library


def _bounds(library: ctypes.CDLL | None) -> ctypes.CDLL | None:
    for name, (returns, types) in _ANYWHERE.items() if library is not None else ():
        function = getattr(library, name)
        function.restype, function.argtypes = returns, types
    return library


_LOADED = _loaded()

LIBRARY = _library(_LOADED)
"""blocks.c, lossless.c, nested.c, products.c, quantise.c and weighted_sum.c; None where they cannot be used."""
>>>>>>> n6b

PACKED = LIBRARY if LIBRARY is not None and LIBRARY.penstock_packed_available() else None
"""packed.c; it asks more of the processor."""

BOUNDS = _bounds(_LOADED)
"""bounds.c; it asks nothing of the processor."""
WIDE_BOUNDS = BOUNDS is not None and bool(BOUNDS.penstock_bounds_wide())
"""Whether its kernel for AVX512 can be used."""
