"""A processor without the instructions that the compiled products need."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from penstock.kernels.products import few_rows
from penstock.kernels.weights import packed_weight


@contextmanager
def old_processor() -> Iterator[None]:
    """No product of ours can run; torch computes all of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in [*sys.modules.items()]:
            if name.startswith("penstock.") and "KERNELS" in vars(module):
                patch.setattr(module, "KERNELS", None)
        patch.setattr(few_rows, "_FOUND", {})  # products that were found with the instructions
        patch.setattr(packed_weight, "_kept", {})
        yield
