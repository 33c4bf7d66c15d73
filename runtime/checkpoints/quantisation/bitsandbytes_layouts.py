"""Layouts of bitsandbytes: four bits that point into a table (NF4, FP4), and int8 with a scale for each row."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..files.safetensors_file import SourceTensor
from .expected import FLOATS, INTEGERS, expect, finite, matrix
from .quantised_tensor import Numbers, QuantisedTensor, ReadTensor, quantised_tensor

_LARGEST, _LONGEST_STATE = 1 << 31, 65536
_STEP = 7.874015718698502e-3  # 1 / 127, as bitsandbytes has it


@dataclass(frozen=True, slots=True)
class _State:
    """What ``quant_state`` says of a weight: ``block`` numbers share a scale. Where scales are quantised themselves,
    ``nested_block`` of them share one, and ``offset`` is added."""

    shape: tuple[int, int]
    block: int
    dtype: torch.dtype
    nested_block: int = 0
    offset: float = 0.0


STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
FOUR_BITS = ("", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", *STATES)
"""What belongs to a weight of four bits, by the end of its name."""


def four_bits(own: Mapping[str, SourceTensor], read: ReadTensor) -> QuantisedTensor:
    """Numbers of four bits, the first in the high half of a byte, in blocks that go on from row to row.

    Raises ValueError, and KeyError with the end of a name that is not there.
    """
    numbers, scales, table = own[""], own[".absmax"], own[".quant_map"]
    state = _state(own, read)
    n, k = state.shape
    if numbers.length != -(-n * k // 2):
        raise ValueError(f"{numbers.length} bytes do not hold [{n}, {k}]")
    blocks = -(-n * k // state.block)
    nested = state.nested_block > 0
    parts = (own[".nested_absmax"], own[".nested_quant_map"]) if nested else ()
    expect(scales, (torch.uint8 if nested else torch.float32,), (blocks,))
    expect(table, (torch.float32,), (16,))
    for part, size in zip(parts, (-(-blocks // max(1, state.nested_block)), 256), strict=False):
        expect(part, (torch.float32,), (size,))

    def decoded(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Numbers:
        numbers, scales, table, *more = map(read, tensors)
        if more:
            of_scales, codes = map(finite, more, tensors[3:])
            each = of_scales[torch.arange(blocks) // state.nested_block]
            scales = codes[scales.int()] * each + state.offset
        finite(scales, tensors[1])
        finite(table, tensors[2])
        flat = numbers.reshape(-1).view(torch.uint8)

        def decode(rows: slice) -> torch.Tensor:
            first, last = rows.start * k, rows.stop * k
            pairs = flat[first // 2 : -(-last // 2)]
            values = torch.stack((pairs >> 4, pairs & 15), 1).reshape(-1)[first % 2 :][: last - first]
            each = scales[torch.arange(first, last) // state.block]
            return (table[values.int()] * each).to(state.dtype).float().view(-1, k)

        return decode

    return quantised_tensor((n, k), (numbers, scales, table, *parts), None, numbers=decoded, of_linear=True)


def int8_rows(own: Mapping[str, SourceTensor], read: ReadTensor) -> QuantisedTensor:
    """int8 [n, k], with the largest number of each row. Raises ValueError, and KeyError as ``four_bits``."""
    numbers, largest = own[".weight"], own[".SCB"]
    order = own.get(".weight_format")
    if order is not None:
        if order.dtype not in (torch.uint8, *INTEGERS) or order.shape not in ((), (1,)):
            raise ValueError(f"{order.name} is {order.dtype} {list(order.shape)}, not one number")
        if int(read(order)) != 0:
            raise ValueError("its numbers are not stored row by row")
    n, k = matrix(numbers, (torch.int8,))
    expect(largest, (torch.float32,), (n,))

    def decoded(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Numbers:
        numbers, largest = map(read, tensors)
        finite(largest, tensors[1])
        return lambda rows: numbers[rows] * largest[rows, None] * _STEP

    return quantised_tensor((n, k), (numbers, largest), None, numbers=decoded, of_linear=True)


def _state(own: Mapping[str, SourceTensor], read: ReadTensor) -> _State:
    """Raises ValueError for one that is not JSON, or of another kind of weight."""
    packed = next((own[end] for end in STATES if end in own), None)
    if packed is None:
        raise KeyError(STATES[0])
    if packed.dtype != torch.uint8 or packed.length > _LONGEST_STATE:
        raise ValueError(f"{packed.name} is {packed.dtype} of {packed.length} bytes, not a short text")
    try:
        raw: dict[str, Any] = json.loads(bytes(read(packed).reshape(-1).tolist()))
        n, k = raw["shape"]
        dtype = getattr(torch, str(raw["dtype"]))
        nested = raw.get("nested_blocksize") or 0 if ".nested_absmax" in own else 0
        state = _State((n, k), raw["blocksize"], dtype, nested, float(raw.get("nested_offset") or 0.0))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{packed.name} does not describe a matrix ({error})") from error
    sizes = (n, k, state.block, state.nested_block or 1)
    if any(type(size) is not int or not 0 < size < _LARGEST for size in sizes) or not math.isfinite(state.offset):
        raise ValueError(f"{packed.name} does not describe a matrix: {raw}")
    if dtype not in FLOATS:
        raise ValueError(f"{packed.name} has dtype {raw['dtype']!r}")
    return state
