"""What a weight format is: it encodes a matrix when a model is packed, decodes it, and may multiply by it as it is.

A matrix [n, k] has one row per output, as ``functional.linear`` takes it. It is encoded to one or several *planes*,
each a run of bytes, a uint8 tensor [length], which comes to lie at a multiple of 64 bytes in memory and is not changed
there. The first plane alone is a matrix, and each further one makes it finer. Most formats have one.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch

SLAB = 64
"""Rows: a matrix is encoded, and may be decoded, in multiples of them."""

Product = Callable[[Sequence[Sequence[int]], Sequence[int]], torch.Tensor]
"""``product(matrices, inputs)``: [len(matrices), rows, n] bfloat16, ``inputs[i] @ matrices[i].T``. A matrix is given by
the addresses of its planes, the first ones or all; inputs [rows, k], contiguous bfloat16, by theirs. What lies there
stays until the call returns."""


Room = Callable[[int], torch.Tensor]
"""Makes room for a plane of so many bytes: uint8 [length], with any content."""


def on_heap(length: int) -> torch.Tensor:
    return torch.empty(length, dtype=torch.uint8)


class Format(Protocol):
    """A weight format. Stateless, safe to use from several threads."""

    name: str
    """As manifests and settings have it."""
    exact: bool
    """Whether decoding gives the very bits that were encoded."""
    planes: int
    """How many there are."""

    def lengths(self, n: int, k: int) -> tuple[int, ...] | None:
        """Bytes of each plane of a matrix [n, k]; None where they depend on its numbers.

        Raises UnsuitableShape where the format has no place for such a matrix: it is then stored as it is.
        """
        ...

    def encode(
        self,
        slabs: Iterable[torch.Tensor],
        n: int,
        k: int,
        importance: torch.Tensor | None = None,
        room: Room = on_heap,
    ) -> tuple[torch.Tensor, ...]:
        """The planes of the matrix [n, k]. ``slabs`` are its rows from the top, SLAB at a time or a multiple of that
        (fewer only in the last), in a floating-point dtype; one is used up before the next is asked for.

        ``importance`` [k], float32, says how much an error in each column counts (its mean squared input); all columns
        alike if not given. Planes lie in what ``room`` gives, all of it before the first slab is taken. Raises
        ValueError, saying what, for numbers that the format cannot have, as NaN.
        """
        ...

    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        """Fill ``out`` [rows, k], contiguous, with ``rows`` of the matrix in ``planes``, the first ones or all.

        ``rows.start`` is a multiple of SLAB. The dtype of ``out`` is any floating-point one; with an exact format the
        one that was encoded.
        """
        ...

    def products(self, rows: int, n: int, k: int) -> Product | None:
        """Products of a few ``rows`` with matrices [n, k] as they are stored, in bfloat16, several in one call; None
        where decoding and torch's own product are faster, or this machine has no such kernel."""
        ...


class UnsuitableShape(ValueError):
    """The format has no place for a matrix of this shape."""
