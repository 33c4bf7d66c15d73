"""as-is: keys and values in the model's dtype, [H, P, D], contiguous."""

from collections.abc import Sequence

import torch

from . import attention
from .base import PageShape, padded


class AsIs:
    name = "as-is"
    exact = True

    def key_bytes(self, shape: PageShape) -> int:
        return padded(shape.size)

    def value_bytes(self, shape: PageShape) -> int:
        return padded(shape.size)

    def encode_keys(self, keys: torch.Tensor, out: torch.Tensor) -> None:
        _encode(keys, out)

    def encode_values(self, values: torch.Tensor, out: torch.Tensor) -> None:
        _encode(values, out)

    def decode_keys(self, plane: torch.Tensor, shape: PageShape, out: torch.Tensor) -> None:
        out.copy_(numbers_in(plane, shape))

    def decode_values(self, plane: torch.Tensor, shape: PageShape, out: torch.Tensor) -> None:
        out.copy_(numbers_in(plane, shape))

    def scores(
        self, query: torch.Tensor, planes: Sequence[int], shape: PageShape, scaling: float, out: torch.Tensor, at: int
    ) -> None:
        attention.scores(query, planes, shape, scaling, out, at)

    def weigh(
        self, probabilities: torch.Tensor, at: int, planes: Sequence[int], shape: PageShape, out: torch.Tensor
    ) -> None:
        attention.weigh(probabilities, at, planes, shape, out)


def numbers_in(plane: torch.Tensor, shape: PageShape) -> torch.Tensor:
    """A view of the numbers in a plane as it is, [H, P, D]."""
    return plane[: shape.size].view(shape.dtype).view(shape.heads, shape.tokens, shape.dim)


def _encode(numbers: torch.Tensor, out: torch.Tensor) -> None:
    size = numbers.numel() * numbers.itemsize
    out[:size].view(numbers.dtype).view(numbers.shape).copy_(numbers)
    out[size:].zero_()
