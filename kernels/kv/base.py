"""What a KV format is: it encodes the keys and the values of a page, decodes them, and attends to them as they are.

A page is `tokens` tokens of one layer of one sequence. Its keys and its values are a *plane* of bytes each, a uint8
tensor that comes to lie at a multiple of 4096 bytes in memory and is not changed there. Only the last page of a
sequence is partly filled; what its plane holds behind the last token is anything, NaN included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..memory.page import PAGE


@dataclass(frozen=True)
class PageShape:
    """What a plane holds: keys or values [heads, tokens, dim] of a dtype."""

    heads: int
    tokens: int
    dim: int
    dtype: torch.dtype

    @property
    def numbers(self) -> int:
        return self.heads * self.tokens * self.dim

    @property
    def size(self) -> int:
        """Bytes of the numbers as they are."""
        return self.numbers * self.dtype.itemsize


def padded(size: int) -> int:
    """Bytes of a plane that holds ``size`` bytes."""
    return -(-size // PAGE) * PAGE


class KVFormat(Protocol):
    """A KV format. Stateless, safe to use from several threads.

    Queries are [Hq, R, D], contiguous: R rows of one sequence, Hq a multiple of the heads H of a page; query head h has
    the keys and values of head h // (Hq / H), as transformers' ``repeat_kv`` has it. Planes are given by their
    addresses; what lies there stays until the call returns. No bit depends on the number of threads, nor on how many
    planes one call is given.
    """

    name: str
    """As settings and files have it."""
    exact: bool
    """Whether decoding gives the very bits that were encoded."""

    def key_bytes(self, shape: PageShape) -> int:
        """Bytes of a plane of keys, a multiple of 4096."""
        ...

    def value_bytes(self, shape: PageShape) -> int:
        """Bytes of a plane of values, a multiple of 4096."""
        ...

    def encode_keys(self, keys: torch.Tensor, out: torch.Tensor) -> None:
        """Fill the plane ``out``, uint8 [key_bytes], with ``keys`` [H, P, D]; every byte of it is written."""
        ...

    def encode_values(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """The same with values."""
        ...

    def decode_keys(self, plane: torch.Tensor, shape: PageShape, out: torch.Tensor) -> None:
        """Fill ``out`` [H, P, D] with the keys in ``plane``."""
        ...

    def decode_values(self, plane: torch.Tensor, shape: PageShape, out: torch.Tensor) -> None:
        """The same with values."""
        ...

    def scores(
        self, query: torch.Tensor, planes: Sequence[int], shape: PageShape, scaling: float, out: torch.Tensor, at: int
    ) -> None:
        """Fill ``out[:, :, at : at + len(planes) * P]``, float32 [Hq, R, T], contiguous, with query times keys, rounded
        to the query's dtype, times ``scaling``, rounded again: as transformers' eager attention does it. Where ``out``
        ends before the last page does, the rest of that page is left out."""
        ...

    def weigh(
        self, probabilities: torch.Tensor, at: int, planes: Sequence[int], shape: PageShape, out: torch.Tensor
    ) -> None:
        """Add ``probabilities[:, :, at : at + len(planes) * P]`` times values to ``out``, float32 [Hq, R, D],
        contiguous. Probabilities [Hq, R, T], contiguous, have the values' dtype; where they end before the last page
        does, the rest of that page is not looked at. Sums are taken page by page, in the order of tokens."""
        ...
