"""Kernels of weights at any level of instructions that this processor runs, in one process."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from penstock.kernels.formats import blocks, int4, int8, lossless, nested
from penstock.kernels.native import RUNS, find_level
from penstock.kernels.products import few_rows

_MODULES = (blocks, int4, int8, lossless, nested, few_rows)

levels = pytest.mark.parametrize("level", RUNS)
levels_and_none = pytest.mark.parametrize("level", [None, *RUNS])


@contextmanager
def held_to(level: str | None) -> Iterator[None]:
    """Products and decoding with the kernels of a ``level``, or with none."""
    with pytest.MonkeyPatch.context() as patch:
        for module in _MODULES:
            patch.setattr(module, "KERNELS", level and find_level(level))
        patch.setattr(few_rows, "_FOUND", {})
        yield
