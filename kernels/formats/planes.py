"""What must hold of stored planes before a kernel gets them: their lengths, and the values in them that lead somewhere.

A kernel is told where planes lie, and how large a matrix is. So the lengths are compared here, where planes become
addresses. Values that are an index, an offset or a count are checked once, when the bytes arrive: ``find_fault``.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch

from .base import SLAB, Format, UnsuitableShape, Window


@runtime_checkable
class VaryingLengths(Protocol):
    """A format with one plane, whose length depends on the numbers: its ``lengths`` are None."""

    def length_range(self, n: int, k: int) -> tuple[int, int]:
        """Return the least and the most bytes of the plane of a matrix [n, k]."""
        ...

    def find_lengths(self, slabs: Iterable[torch.Tensor], n: int, k: int) -> tuple[int, ...]:
        """Return the bytes of each plane that ``encode`` would make of ``slabs``, sooner than that. Raises as it."""
        ...


def check_planes(format_: Format, n: int, k: int, lengths: tuple[int, ...]) -> None:
    """Raise ValueError, with the reason, unless planes of ``lengths`` bytes can be a matrix [n, k].

    They are the first planes or all.
    """
    known: Any = format_  # hashable, which a protocol does not say
    _check_planes(known, n, k, lengths)


def check_plane(format_: Format, n: int, k: int, plane: int, length: int) -> None:
    """Raise ValueError, with the reason, unless ``length`` bytes can be plane number ``plane`` of a matrix [n, k]."""
    known: Any = format_
    _check_plane(known, n, k, plane, length)


@lru_cache(maxsize=4096)
def _check_planes(format_: Any, n: int, k: int, lengths: tuple[int, ...]) -> None:
    if not 1 <= len(lengths) <= format_.planes:
        _refuse(format_, n, k, f"has 1 to {format_.planes} planes, not {len(lengths)}")
    for plane, length in enumerate(lengths):
        _check_plane(format_, n, k, plane, length)


@lru_cache(maxsize=4096)
def _check_plane(format_: Any, n: int, k: int, plane: int, length: int) -> None:
    if n < 1 or k < 1:
        raise ValueError(f"there is no {format_.name} matrix [{n}, {k}]")
    if not 0 <= plane < format_.planes:
        _refuse(format_, n, k, f"has no plane {plane}")
    try:
        told = format_.lengths(n, k)
    except UnsuitableShape as error:
        raise ValueError(f"there is no {format_.name} matrix [{n}, {k}]: {error}") from None
    if told is not None:
        if length != told[plane]:
            _refuse(format_, n, k, f"takes {told[plane]} bytes in plane {plane}, not {length}")
        return
    varying: object = format_
    assert isinstance(varying, VaryingLengths)
    least, most = varying.length_range(n, k)
    if not least <= length <= most:
        _refuse(format_, n, k, f"takes {least} to {most} bytes, not {length}")


@lru_cache
def _varies(format_: Any) -> bool:
    return isinstance(format_, VaryingLengths)  # slow


def _refuse(format_: Format, n: int, k: int, why: str) -> None:
    raise ValueError(f"a {format_.name} matrix [{n}, {k}] {why}")


def locate(format_: Format, planes: Sequence[torch.Tensor], n: int, k: int) -> list[int]:
    """Return what products of the format take for the matrix [n, k] in ``planes``, the first ones or all.

    These are the addresses, each followed by the length where that depends on the numbers. Raises ValueError for planes
    that are not of such a matrix.
    """
    known: Any = format_
    _check_planes(known, n, k, tuple(plane.numel() for plane in planes))
    for plane in planes:
        if plane.dtype != torch.uint8 or plane.dim() != 1 or not plane.is_contiguous():
            _refuse(format_, n, k, f"is made of bytes, not of {plane.dtype} {[*plane.shape]}")
    if _varies(known):
        return [number for plane in planes for number in (plane.data_ptr(), plane.numel())]
    return [plane.data_ptr() for plane in planes]


def check_decode(
    format_: Format, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor
) -> None:
    """Raise ValueError unless ``rows`` of the matrix [n, k] in ``planes`` can be decoded to ``out``. See Format."""
    check_planes(format_, n, k, tuple(map(len, planes)))
    first, count = rows.start, rows.stop - rows.start
    if first % SLAB or not 0 <= first <= rows.stop <= n:
        raise ValueError(f"no slab begins, or no matrix of {n} rows ends, where {rows} does")
    if out.shape != (count, k) or not out.is_contiguous() or (format_.exact and out.dtype != torch.bfloat16):
        raise ValueError(f"{format_.name} decodes to contiguous numbers [{count}, {k}], not {out.dtype} {[*out.shape]}")


def read_memory(plane: torch.Tensor) -> Window:
    """Return what reads ``plane``, all of which is in host memory."""
    return lambda start, length: plane[start : start + length]


def find_fault(
    format_: Format, plane: int, n: int, k: int, length: int, read: Window, at_once: int | None = None
) -> str | None:
    """Return what is wrong with plane number ``plane`` of a matrix [n, k], ``length`` bytes, or None.

    What passes is decoded and multiplied without an error. ``read`` is asked for nothing outside of the plane, and for
    ``at_once`` bytes at most, unless a tile of sixteen rows or an order of columns has more; for any number if that is
    None.
    """
    try:
        check_plane(format_, n, k, plane, length)
    except ValueError as error:
        return str(error)
    return None if format_.any_bytes else format_.find_fault(plane, n, k, length, read, at_once)
