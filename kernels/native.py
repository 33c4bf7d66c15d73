"""The compiled half of the kernels, if it was compiled at installation and this processor can run it."""

import ctypes
import importlib.util


def _library() -> ctypes.CDLL | None:
    found = importlib.util.find_spec("penstock.kernels._native")
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    library.penstock_products.restype = None
    library.penstock_products.argtypes = [ctypes.c_long] + [ctypes.c_void_p] * 3 + [ctypes.c_long] * 4 + [ctypes.c_int]
    library.penstock_add_weighted.restype = None
    library.penstock_add_weighted.argtypes = [ctypes.c_long] + [ctypes.c_void_p] * 4 + [ctypes.c_long, ctypes.c_int]
    library.penstock_nested.restype = None
    library.penstock_nested.argtypes = (
        [ctypes.c_long] + [ctypes.c_void_p] * 3 + [ctypes.c_long] * 4 + [ctypes.c_void_p, ctypes.c_int]
    )
    return library if library.penstock_available() else None


LIBRARY = _library()
"""products.c and weighted_sum.c; None where they cannot be used."""
