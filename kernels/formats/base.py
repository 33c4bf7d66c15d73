"""Interface of a weight format: it encodes a matrix for a bundle, decodes it, and may multiply by it as stored.

A matrix [n, k] has one row per output, as in ``functional.linear``. It is encoded to one or several *planes*. A plane
is a run of bytes, a uint8 tensor [length]. In memory it starts at a multiple of 64 bytes and is never changed. The
first plane alone is a complete matrix, and each further plane makes it more precise. Most formats have one plane.
CONTRIBUTING.md lists the steps that add a format.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch

SLAB = 64
"""Rows of a slab. A matrix is encoded in multiples of them, and may be decoded so."""

Product = Callable[[Sequence[Sequence[int]], Sequence[int]], torch.Tensor]
"""``product(matrices, inputs)`` computes bfloat16 [len(matrices), rows, n]: ``inputs[i] @ matrices[i].T``.

A matrix is given as by ``planes.locate``, which has checked its lengths. The inputs [rows, k], contiguous bfloat16, are
given by their addresses. The memory must stay valid until the call returns. Whatever bytes the planes have, nothing
outside of them is read.
"""


class BiasedProduct(Protocol):
    """A Product that adds to each row of a result a bias [n], contiguous bfloat16, before it rounds the sum."""

    def __call__(
        self, matrices: Sequence[Sequence[int]], inputs: Sequence[int], biases: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Compute the product. ``biases`` are given by their addresses, or are None if there are none."""
        ...


Window = Callable[[int, int], torch.Tensor]
"""``read(start, length)`` gives some bytes of a plane in host memory, uint8 [length], valid until the next call."""


PlaneAllocator = Callable[[int], torch.Tensor]
"""Allocates a plane of the given number of bytes: uint8 [length], with any content."""


def allocate_on_heap(length: int) -> torch.Tensor:
    """Allocate a plane on the heap: uint8 [length]."""
    return torch.empty(length, dtype=torch.uint8)


class Format(Protocol):
    """A weight format. Stateless, safe to use from several threads."""

    name: str
    """The name in manifests and settings."""
    exact: bool
    """Whether decoding gives exactly the encoded bits."""
    planes: int
    """Number of planes."""
    any_bytes: bool
    """Whether any bytes, as many as there should be, are a matrix: none is an index, an offset or a count."""

    def lengths(self, n: int, k: int) -> tuple[int, ...] | None:
        """Return the bytes of each plane of a matrix [n, k]. None where they depend on its numbers.

        Raises UnsuitableShape if the format cannot store such a matrix. The matrix is then stored as it is.
        """
        ...

    def encode(
        self,
        slabs: Iterable[torch.Tensor],
        n: int,
        k: int,
        importance: torch.Tensor | None = None,
        room: PlaneAllocator = allocate_on_heap,
    ) -> tuple[torch.Tensor, ...]:
        """Encode the matrix [n, k] and return its planes.

        ``slabs`` are its rows from the top in a floating-point dtype, SLAB at a time or a multiple of that, fewer only
        in the last. Each is consumed before the next is requested. ``importance`` [k], float32, weighs errors in each
        column (its mean squared input). Without it all columns count the same. Planes lie in memory from ``room``,
        which is called for all of it before the first slab is taken. Raises ValueError, with the reason, for numbers
        that the format cannot store, such as NaN.
        """
        ...

    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        """Fill ``out`` [rows, k], contiguous, with ``rows`` of the matrix in ``planes``, the first ones or all.

        ``rows.start`` is a multiple of SLAB. ``out`` has any floating-point dtype, with an exact format the encoded
        one. Raises ValueError for planes of other lengths, as ``planes.check_decode``. Whatever bytes they have,
        nothing outside of them is read, and nothing outside of ``out`` is written.
        """
        ...

    def find_fault(
        self, plane: int, n: int, k: int, length: int, read: Window, at_once: int | None = None
    ) -> str | None:
        """Return what is wrong with plane number ``plane`` of a matrix [n, k], or None. See ``planes.find_fault``.

        ``length`` bytes are those of such a matrix. What passes is decoded and multiplied without an error. Always None
        with ``any_bytes``. ``read`` is asked for ``at_once`` bytes at most, or for a part that cannot be divided; for
        any number if that is None.
        """
        ...

    def find_product(self, rows: int, n: int, k: int) -> Product | None:
        """Return the product of a few ``rows`` with matrices [n, k] as stored, in bfloat16, several in one call.

        None where decoding and torch's own product are faster, or where this machine has no such kernel.
        """
        ...


class ExactFormat(Format, Protocol):
    """A weight format with ``exact``."""

    def find_product(self, rows: int, n: int, k: int, *, biased: bool = False) -> BiasedProduct | None:
        """Return the product with the bits of torch's, as Format. ``biased``: with biases, else without."""
        ...


class UnsuitableShape(ValueError):
    """The format cannot store a matrix of this shape."""
