"""A plugin of pytest: kernels come from the library that the environment names, not from the installed one."""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType

LIBRARY = "PENSTOCK_SANITIZED"
"""Environment variable with the path of the library. Only this plugin reads it."""
_NAME = "penstock.kernels._native"


class _Sanitized(importlib.abc.MetaPathFinder):
    """Finds the compiled library where the variable says."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _NAME:
            return None
        return importlib.machinery.ModuleSpec(_NAME, None, origin=os.environ[LIBRARY])


sys.meta_path.insert(0, _Sanitized())
