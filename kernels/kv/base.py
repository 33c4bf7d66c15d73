"""The interface of a KV format: it encodes the keys and the values of a page, decodes them, and computes attention.

A page has `tokens` tokens of one layer of one sequence. Its keys and its values are a uint8 tensor each, which lies at
a multiple of 4096 bytes in memory and is not changed there. Only the last page of a sequence is partly filled. Behind
its last token there may be anything, NaN included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..memory.page import PAGE


@dataclass(frozen=True)
class PageShape:
    """The keys, or the values, of a page: [heads, tokens, dim] of a dtype."""

    heads: int
    tokens: int
    dim: int
    dtype: torch.dtype

    @property
    def elements(self) -> int:
        """heads * tokens * dim."""
        return self.heads * self.tokens * self.dim

    @property
    def size(self) -> int:
        """Bytes of the elements as they are."""
        return self.elements * self.dtype.itemsize


def pad_to_page(size: int) -> int:
    """``size`` bytes, up to a multiple of 4096."""
    return -(-size // PAGE) * PAGE


class KVFormat(Protocol):
    """A KV format. Stateless, safe to use from several threads.

    Queries are [Hq, R, D], contiguous: R rows of one sequence, Hq a multiple of the heads H of a page. Query head h has
    the keys and values of head h // (Hq / H), as transformers' ``repeat_kv`` has it. Pages are given by their pages
    and stay there until the call returns. No bit depends on the number of threads, or of pages in one call.
    """

    name: str
    """Its name in settings and files."""
    exact: bool
    """Whether decoding gives the very bits that were encoded."""

    def key_bytes(self, shape: PageShape) -> int:
        """Bytes of a page of keys, a multiple of 4096."""
        ...

    def value_bytes(self, shape: PageShape) -> int:
        """Bytes of a page of values, a multiple of 4096."""
        ...

    def encode_keys(self, keys: torch.Tensor, out: torch.Tensor) -> None:
        """Fill ``out``, uint8 [key_bytes], with ``keys`` [H, P, D]; every byte of it is written."""
        ...

    def encode_values(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """The same for values."""
        ...

    def decode_keys(self, data: torch.Tensor, shape: PageShape, out: torch.Tensor) -> None:
        """Fill ``out`` [H, P, D] with the keys in ``data``, uint8 [key_bytes]."""
        ...

    def decode_values(self, data: torch.Tensor, shape: PageShape, out: torch.Tensor) -> None:
        """The same for values."""
        ...

    def scores(
        self,
        query: torch.Tensor,
        pages: Sequence[int],
        shape: PageShape,
        scaling: float,
        out: torch.Tensor,
        at: int,
    ) -> None:
        """Fill ``out[:, :, at : at + len(pages) * P]``, float32 [Hq, R, T], contiguous, with query times keys,
        rounded to the query's dtype, times ``scaling``, rounded again, as in transformers' eager attention. If ``out``
        ends before the last page does, the rest of that page is left out."""
        ...

    def weigh(
        self, probabilities: torch.Tensor, at: int, pages: Sequence[int], shape: PageShape, out: torch.Tensor
    ) -> None:
        """Add ``probabilities[:, :, at : at + len(pages) * P]`` times values to ``out``, float32 [Hq, R, D],
        contiguous. Probabilities [Hq, R, T], contiguous, have the values' dtype. If they end before the last page
        does, the rest of that page is not read. Sums are taken page by page, in the order of tokens."""
        ...
