"""Functions of the system's C library."""

import ctypes
import sys
from typing import Any

_LIBRARY: Any = None if sys.platform == "win32" else ctypes.CDLL(None, use_errno=True)


def find_c(name: str, *argument_types: Any) -> Any:
    """Return the function ``name`` of the C library, which sets errno and takes ``argument_types``. None without it."""
    function = getattr(_LIBRARY, name, None)
    if function is not None:
        function.argtypes = argument_types
    return function
