"""Layouts of bitsandbytes: four bits that point into a table (NF4, FP4), and int8 with a scale for each row."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..files.safetensors_file import SourceTensor
from .quantised_tensor import Numbers, QuantisedTensor, ReadTensor, quantised_tensor

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
    blocks = -(-n * k // state.block)
    nested = state.nested_block > 0
    parts = (own[".nested_absmax"], own[".nested_quant_map"]) if nested else ()
    if numbers.length != -(-n * k // 2) or table.shape != (16,) or scales.shape != (blocks,):
        raise ValueError(f"{numbers.length} bytes with {list(scales.shape)} scales do not hold [{n}, {k}]")
    if scales.dtype != (torch.uint8 if nested else torch.float32):
        raise ValueError(f"its scales are {scales.dtype}")

    def decoded(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Numbers:
        numbers, scales, table, *more = map(read, tensors)
        if more:
            whole, codes = more
            each = whole.repeat_interleave(state.nested_block)[:blocks]
            scales = codes[scales.int()] * each + state.offset
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
    if order is not None and int(read(order).reshape(-1)[0]) != 0:
        raise ValueError("its numbers are not stored row by row")
    n, k = numbers.shape
    if numbers.dtype != torch.int8 or largest.shape != (n,) or largest.dtype != torch.float32:
        raise ValueError(f"{largest.dtype} {list(largest.shape)} do not fit {numbers.dtype} [{n}, {k}]")

    def decoded(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Numbers:
        numbers, largest = map(read, tensors)
        return lambda rows: numbers[rows] * largest[rows, None] * _STEP

    return quantised_tensor((n, k), (numbers, largest), None, numbers=decoded, of_linear=True)


def _state(own: Mapping[str, SourceTensor], read: ReadTensor) -> _State:
    """Raises ValueError for one that is not JSON, or of another kind of weight."""
    packed = next((own[end] for end in STATES if end in own), None)
    if packed is None:
        raise KeyError(STATES[0])
    raw: dict[str, Any] = json.loads(bytes(read(packed).tolist()))
    try:
        n, k = map(int, raw["shape"])
        dtype = getattr(torch, str(raw["dtype"]))
        nested = int(raw.get("nested_blocksize") or 0) if ".nested_absmax" in own else 0
        return _State((n, k), int(raw["blocksize"]), dtype, nested, float(raw.get("nested_offset") or 0.0))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{packed.name} does not describe a matrix ({error})") from error
