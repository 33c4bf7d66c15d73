"""Whether stored planes are those of a matrix: what must hold before a byte of them reaches a kernel. Pure."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, runtime_checkable

from .base import Format, UnsuitableShape
from .registry import FORMATS

_DTYPES = ("bfloat16", "float16", "float32", "float64")


@runtime_checkable
class VaryingLengths(Protocol):
    """A format whose ``lengths`` are None."""

    def length_range(self, n: int, k: int) -> tuple[int, int]:
        """Return the least and the most bytes of the plane of a matrix [n, k]."""
        ...


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
    _check_lengths(find_format(format_name), rows, columns, tuple(lengths))


@lru_cache(maxsize=4096)
def _check_lengths(format_: Format, n: int, k: int, lengths: tuple[int, ...]) -> None:
    what = f"{format_.name} matrix [{n}, {k}]"
    if n < 1 or k < 1:
        raise ValueError(f"there is no {what}")
    if not 1 <= len(lengths) <= format_.planes:
        raise ValueError(f"a {what} has 1 to {format_.planes} planes, not {len(lengths)}")
    try:
        told = format_.lengths(n, k)
    except UnsuitableShape as error:
        raise ValueError(f"there is no {what}: {error}") from None
    if told is None:
        assert isinstance(format_, VaryingLengths)
        least, most = format_.length_range(n, k)
        if not least <= lengths[0] <= most:
            raise ValueError(f"a {what} takes {least} to {most} bytes, not {lengths[0]}")
        return
    for plane, (length, wanted) in enumerate(zip(lengths, told, strict=False)):
        if length != wanted:
            raise ValueError(f"plane {plane} of a {what} takes {wanted} bytes, not {length}")


def check_planes(format_: Format, n: int, k: int, lengths: Sequence[int]) -> None:
    """``check_lengths`` for a format at hand."""
    _check_lengths(format_, n, k, tuple(lengths))
