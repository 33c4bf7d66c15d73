"""as-is: keys and values in the model's dtype, [H, P, D], contiguous."""

from collections.abc import Sequence

import torch

from . import attention
from .base import PageShape, pad_to_page


class AsIs:
    """The KVFormat that keeps the model's dtype: decoding gives the very bits."""

    name = "as-is"
    exact = True

    def key_bytes(self, shape: PageShape) -> int:
        """As in KVFormat."""
        return pad_to_page(shape.size)

    def value_bytes(self, shape: PageShape) -> int:
        """As in KVFormat."""
        return pad_to_page(shape.size)

    def encode_keys(self, keys: torch.Tensor, out: torch.Tensor) -> None:
        """As in KVFormat."""
        _encode(keys, out)

    def encode_values(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """As in KVFormat."""
        _encode(values, out)

    def decode_keys(self, data: torch.Tensor, shape: PageShape, out: torch.Tensor) -> None:
        """As in KVFormat."""
        out.copy_(view_elements(data, shape))

    def decode_values(self, data: torch.Tensor, shape: PageShape, out: torch.Tensor) -> None:
        """As in KVFormat."""
        out.copy_(view_elements(data, shape))

    def scores(
        self,
        query: torch.Tensor,
        pages: Sequence[int],
        shape: PageShape,
        scaling: float,
        out: torch.Tensor,
        at: int,
    ) -> None:
        """As in KVFormat."""
        attention.compute_scores(query, pages, shape, scaling, out, at)

    def weigh(
        self, probabilities: torch.Tensor, at: int, pages: Sequence[int], shape: PageShape, out: torch.Tensor
    ) -> None:
        """As in KVFormat."""
        attention.weigh(probabilities, at, pages, shape, out)


def view_elements(data: torch.Tensor, shape: PageShape) -> torch.Tensor:
    """A view [H, P, D] of the ``data`` of a page that is as it is."""
    return data[: shape.size].view(shape.dtype).view(shape.heads, shape.tokens, shape.dim)


def _encode(numbers: torch.Tensor, out: torch.Tensor) -> None:
    size = numbers.numel() * numbers.itemsize
    out[:size].view(numbers.dtype).view(numbers.shape).copy_(numbers)
    out[size:].zero_()
