"""int8: 9 bits a number with its share of scales. The least and the largest number of a group are kept."""

import torch

from .quantised import Quantised

_HIGHEST = 255
_LEAST_SCALE = torch.finfo(torch.float32).tiny  # below, its inverse is no number


def _quantise(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scales and zeros are rounded so that the group's range lies within theirs. Of bfloat16 numbers the zero is the
    least one exactly; groups of one value are exact."""
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
