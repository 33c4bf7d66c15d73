"""Bounds for the memory that the libraries under torch keep on the heap."""

import os

from .c_library import find_c

_KEPT_KERNELS = "32"


def bound_kernel_caches() -> None:
    """Let oneDNN keep a few compiled kernels instead of a thousand.

    Values that the user has set in the environment stay.

    oneDNN compiles one kernel per matrix shape, of about 0.6 MB. A prompt gives every expert another number of rows.
    Without a bound, hundreds of megabytes stay for shapes that do not return. A token needs a dozen kernels. The call
    works only before torch uses oneDNN for the first time.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, _KEPT_KERNELS)


def trim() -> None:
    """Return free heap memory to the system, where the C library can. It takes about a millisecond."""
    give_back = find_c("malloc_trim")
    if give_back is not None:
        give_back(0)
