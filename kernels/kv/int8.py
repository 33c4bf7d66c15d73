"""int8: 9 bits an element with its share of the scales. The least and the largest element of a group are kept.

quantised.py encodes pages by it.
"""

import torch

from .quantised import Quantised

_HIGHEST = 255
_LEAST_SCALE = torch.finfo(torch.float32).tiny
"""The inverse of a smaller scale is infinite."""


def _quantise(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As Quantise. Scales and zeros are rounded so that they span the range of the group. The zero of bfloat16 elements
    is the least of them exactly, and groups of one value are exact."""
    low, high = rows.aminmax(dim=1)
    zeros = _towards(low, -torch.inf)
    scales = _towards((high - zeros.float()) / _HIGHEST, torch.inf)
    inverse = torch.where(scales >= _LEAST_SCALE, 1 / scales.float(), 0)
    numbers = ((rows - zeros.float()[:, None]) * inverse[:, None]).round_().clamp_(0, _HIGHEST)
    return numbers.to(torch.uint8), scales, zeros


def _towards(numbers: torch.Tensor, end: float) -> torch.Tensor:
    """``numbers``, float32, as bfloat16, rounded towards ``end``, an infinity."""
    near = numbers.bfloat16()
    beyond = near.float() > numbers if end < 0 else near.float() < numbers
    return torch.where(beyond, torch.nextafter(near, torch.full_like(near, end)), near)


INT8 = Quantised("int8", 8, _quantise)
