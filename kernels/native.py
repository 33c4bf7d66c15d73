"""The compiled half of the kernels, if it was compiled at installation and this processor can run it."""

import ctypes
import importlib.util
from ctypes import c_int, c_long, c_void_p

_SIGNATURES = {
    "penstock_products": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_int],
    "penstock_add_weighted": [c_long] + [c_void_p] * 4 + [c_long, c_int],
    "penstock_products_int8": [c_long] + [c_void_p] * 3 + [c_long] * 3 + [c_int],
    "penstock_products_int4": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_int],
    "penstock_quantise_int4": [c_void_p] * 5 + [c_long] * 3 + [c_void_p] + [c_int] * 3,
    "penstock_decode_int8": [c_void_p] * 2 + [c_long] * 4 + [c_int],
    "penstock_decode_int4": [c_void_p] * 2 + [c_long] * 5 + [c_int],
    "penstock_products_nested": [c_long] + [c_void_p] * 3 + [c_long] * 4 + [c_void_p, c_int],
    "penstock_decode_nested": [c_void_p] * 2 + [c_long] * 4 + [c_int],
}
"""Of functions that return nothing."""


def _library() -> ctypes.CDLL | None:
    found = importlib.util.find_spec("penstock.kernels._native")
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    if not library.penstock_available():
        return None
    for name, types in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = None, types
    return library


LIBRARY = _library()
"""nested.c, products.c, quantise.c and weighted_sum.c; None where they cannot be used."""

PACKED = LIBRARY if LIBRARY is not None and LIBRARY.penstock_packed_available() else None
"""packed.c; it asks more of the processor."""
