"""What the tensors of a quantised weight must be: dtypes, shapes and numbers, compared before they are used."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ....tiering.errors import CheckpointError
from ..files.safetensors_file import SourceTensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)
_LARGEST = 1 << 31
_E8M0_NAN = 255


def expect(tensor: SourceTensor, dtypes: Sequence[torch.dtype], shape: Sequence[int]) -> None:
    """Raise ValueError unless ``tensor`` is of one of ``dtypes``, and of ``shape``."""
    if tensor.dtype not in dtypes or tensor.shape != tuple(shape):
        wanted = " or ".join(map(_name, dtypes))
        raise ValueError(
            f"{tensor.name} is {_name(tensor.dtype)} {list(tensor.shape)}, and {wanted} {list(shape)} is wanted"
        )


def matrix(tensor: SourceTensor, dtypes: Sequence[torch.dtype]) -> tuple[int, int]:
    """The shape of ``tensor``, which is a matrix with numbers of one of ``dtypes``. Raises ValueError."""
    if tensor.dtype not in dtypes or len(tensor.shape) != 2 or not tensor.length:
        wanted = " or ".join(map(_name, dtypes))
        raise ValueError(
            f"{tensor.name} is {_name(tensor.dtype)} {list(tensor.shape)}, and a matrix of {wanted} is wanted"
        )
    rows, columns = tensor.shape
    return rows, columns


def whole(config: Mapping[str, Any], *keys: str, default: int | None = None) -> int:
    """The whole number that ``config`` has under the first of ``keys`` that it has. Raises ValueError."""
    for key in keys:
        if (value := config.get(key)) is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float | str) or not _is_whole(value):
            raise ValueError(f"quantization_config has {key} {value!r}, not a whole number")
        return int(value)
    if default is None:
        raise ValueError(f"quantization_config has no {keys[0]}")
    return default


def finite(values: torch.Tensor, source: SourceTensor) -> torch.Tensor:
    """``values``, the scales in ``source``. Raises CheckpointError where one is infinite or none."""
    if values.dtype == torch.uint8:
        ok = not bool((values == _E8M0_NAN).any())
    else:
        ok = bool(torch.isfinite(values.float()).all())
    if not ok:
        raise CheckpointError(
            f"{source.file}: {source.name} has scales that are infinite or no numbers; fetch the checkpoint again"
        )
    return values


def _is_whole(value: float | str) -> bool:
    try:
        number = float(value)
    except ValueError:
        return False
    return math.isfinite(number) and number == int(number) and abs(number) < _LARGEST


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
