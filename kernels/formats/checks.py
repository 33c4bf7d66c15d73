"""Whether what a file says of a matrix can be true: by the names that stand there. Pure."""

from collections.abc import Sequence

from .base import Format
from .planes import check_planes
from .registry import FORMATS

_DTYPES = ("bfloat16", "float16", "float32", "float64")


def find_format(name: str) -> Format:
    """Return the format called ``name``. Raises ValueError if there is none."""
    found = FORMATS.get(name)
    if found is None:
        raise ValueError(f"there is no weight format {name!r} here")
    return found


def check_dtype(format_name: str, dtype: str) -> None:
    """Raise ValueError, with the reason, unless the format stores matrices of ``dtype``, as in ``torch.<dtype>``."""
    allowed = ("bfloat16",) if find_format(format_name).exact else _DTYPES
    if dtype not in allowed:
        raise ValueError(f"{format_name} stores {' or '.join(allowed)} numbers, not {dtype}")


def check_lengths(format_name: str, rows: int, columns: int, lengths: Sequence[int]) -> None:
    """Raise ValueError, with the reason, unless planes of ``lengths`` bytes can be a matrix [rows, columns].

    The matrix is as encoded: the transpose of the weight if that was encoded. Planes are the first ones or all, in
    their order.
    """
    check_planes(find_format(format_name), rows, columns, tuple(lengths))
