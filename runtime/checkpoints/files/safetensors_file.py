"""One safetensors file: a strict parse of its header."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ....tiering.errors import CheckpointError
from ....tiering.units import MiB
from .json_file import unique
from .regular import RegularFile
from .source_file import SourceFile

HEADER_LIMIT = 100_000_000
"""Bytes of the longest header that the format allows."""

_HEADER_WITHOUT_DATA = 16 * MiB
"""Bytes by which a header may be longer than the tensors that it describes: some 100,000 tensors that are empty."""
_DIMENSIONS, _LARGEST = 16, 1 << 63

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F4": torch.float4_e2m1fn_x2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor of a checkpoint: ``length`` bytes at ``offset`` of ``file``, row-major and without gaps."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    length: int

    def part(self, index: int) -> "SourceTensor":
        """The slice ``index`` of the first dimension."""
        length = self.length // self.shape[0]
        return SourceTensor(self.name, self.file, self.dtype, self.shape[1:], self.offset + index * length, length)


def read_tensor(tensor: SourceTensor) -> torch.Tensor:
    """All of a small ``tensor``. Raises CheckpointError."""
    result = torch.empty(tensor.length, dtype=torch.uint8)
    file = SourceFile(tensor.file)
    try:
        file.read(tensor.offset, memoryview(result.numpy()))  # type: ignore[arg-type]
    finally:
        file.close()
    return result.view(tensor.dtype).view(tensor.shape)


def parse_header(path: Path) -> dict[str, SourceTensor]:
    """The tensors of the safetensors file at ``path`` by name, in the order of their bytes.

    Raises CheckpointError when the header is not what the format prescribes, or does not fit the file: tensors that
    overlap, leave gaps or end behind the file, lengths that do not fit shapes, an unknown dtype, a truncated file.
    """
    with RegularFile(path) as file:
        size = file.size
        length = int.from_bytes(file.read(0, min(8, size)), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise _damaged(path, f"its header claims {length} bytes, the file has {size}")
        if length > _HEADER_WITHOUT_DATA + (size - 8 - length):
            raise _damaged(path, f"its header has {length} bytes, and its tensors {size - 8 - length}")
        raw = file.read(8, length)
    try:
        entries = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise _damaged(path, "its header is not a JSON object")
    start = 8 + length
    tensors = sorted(
        (_parse_tensor(path, start, name, entry) for name, entry in entries.items() if name != "__metadata__"),
        key=lambda tensor: (tensor.offset, tensor.offset + tensor.length),
    )
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            what = "overlaps the tensor before it" if tensor.offset < end else "leaves a gap before it"
            raise _damaged(path, f"{tensor.name} {what}")
        end += tensor.length
    if end != size:
        what = "is truncated" if end > size else "has bytes that belong to no tensor"
        raise _damaged(path, f"it {what}: its tensors end at {end}, the file at {size}")
    return {tensor.name: tensor for tensor in tensors}


def _parse_tensor(path: Path, start: int, name: str, entry: Any) -> SourceTensor:
    """One entry of the header, checked on its own."""
    shown = name if name.isprintable() else ascii(name)
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if any(type(number) is not int or not 0 <= number < _LARGEST for number in [*shape, begin, end]):
            raise ValueError("a size or offset is not a natural number")
        if len(shape) > _DIMENSIONS:
            raise ValueError(f"it has {len(shape)} dimensions")
        if not name.isprintable():
            raise ValueError("its name has characters that cannot be printed")
        if not isinstance(code, str) or code not in _DTYPES:
            raise CheckpointError(f"{path}: tensor {shown} has dtype {code!r}, which penstock does not read")
        dtype = _DTYPES[code]
        if code == "F4" and shape:  # two to a byte, as torch counts them
            *shape, last = shape
            shape = [*shape, last // 2]
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{end - begin} bytes do not make a {code} tensor of shape {shape}")
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"the entry of tensor {shown} is wrong ({error})") from error
    return SourceTensor(name, path, dtype, tuple(shape), start + begin, end - begin)


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is truncated or damaged: {what}; fetch the checkpoint again")
