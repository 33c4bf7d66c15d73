"""All that can be told of a stored matrix without the one that was packed: it is decoded from first row to last.

Checksums and the check on arrival say that bytes are those that were packed, and that kernels can follow them. Here
every number is looked at.
"""

from collections.abc import Sequence

import torch

from .base import SLAB
from .checks import check_dtype, check_lengths, find_format
from .planes import find_fault, read_memory

_AT_ONCE = 4 << 20  # bytes that are decoded at a time, at least a slab


def find_deep_fault(format_name: str, dtype: str, n: int, k: int, planes: Sequence[torch.Tensor]) -> str | None:
    """Return what is wrong with the matrix [n, k], as encoded, in ``planes``, or None. Raises nothing.

    ``planes`` are uint8 [length] in host memory, the first ones or all. ``dtype``, as in ``torch.<dtype>``, is that of
    the decoded numbers. Besides what ``find_fault`` tells, all numbers must be finite, unless the format keeps any bits
    of a checkpoint. Takes some MiB, or as much as 64 decoded rows.
    """
    try:
        check_dtype(format_name, dtype)
        check_lengths(format_name, n, k, [len(plane) for plane in planes])
        format_ = find_format(format_name)
        for number, plane in enumerate(planes):
            fault = find_fault(format_, number, n, k, len(plane), read_memory(plane))
            if fault is not None:
                return fault
        numbers: torch.dtype = getattr(torch, dtype)
        step = max(SLAB, _AT_ONCE // (k * numbers.itemsize) // SLAB * SLAB)
        room = torch.empty(min(step, n), k, dtype=numbers)
        for first in range(0, n, step):
            out = room[: min(step, n - first)]
            format_.decode(planes, n, k, slice(first, first + len(out)), out)
            if not format_.exact and not out.isfinite().all():
                row, column = (~out.isfinite()).nonzero()[0].tolist()
                return f"row {first + row}, column {column} is {out[row, column].item()}"
    except ValueError as error:
        return str(error)
    return None
