"""Bounds what the libraries under torch keep on the heap."""

import ctypes
import os

_KEPT_KERNELS = "32"


def bound_kernel_caches() -> None:
    """Let oneDNN keep a few compiled kernels instead of a thousand; what the user has set in the environment stays.

    It compiles one per matrix shape, of about 0.6 MB. A prompt gives every expert another number of rows: without a
    bound, hundreds of megabytes stay for shapes that do not come again. A token needs a dozen. Works until torch has
    used oneDNN for the first time.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, _KEPT_KERNELS)


def trim() -> None:
    """Give free heap memory back to the system, where the C library can. Takes about a millisecond."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
