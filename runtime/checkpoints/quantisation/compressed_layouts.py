"""Layouts of compressed-tensors and ModelOpt: packed integers, int8, float8 and NVFP4, each with scales beside it.

The source computes in the dtype of the scales: so do these, before a number is rounded to the model's dtype.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..files.safetensors_file import SourceTensor
from .expected import INTEGERS, expect, finite, matrix, whole
from .fp8_layouts import unpack_e2m1
from .integer_layouts import Integers, four_bit_format, read_groups, unpack
from .quantised_tensor import Lines, Numbers, QuantisedTensor, ReadTensor, quantised_tensor

_NVFP4_GROUP = 16


def packed_integers(
    own: Mapping[str, SourceTensor], bits: int | None, read: ReadTensor, group: int | None = None
) -> QuantisedTensor:
    """ "pack-quantized": numbers of 4 or 8 bits along k in each int32 of [n, k * bits / 32], less half their range.

    ``bits`` is what the configuration says, where it says one thing, and ``group`` the numbers of a group. Raises
    ValueError, and KeyError with the end of a name that is not there.
    """
    numbers, scales, zeros = own[".weight_packed"], own[".weight_scale"], own.get(".weight_zero_point")
    index = own.get(".weight_g_idx")
    expect(own[".weight_shape"], INTEGERS, (2,))
    n, k = map(int, read(own[".weight_shape"]).tolist())
    found = [bits for bits in (4, 8) if numbers.shape == (n, -(-k * bits // 32))]
    if numbers.dtype != torch.int32 or not numbers.length or len(found) != 1 or bits not in (None, *found):
        raise ValueError(f"{list(numbers.shape)} {numbers.dtype} do not hold [{n}, {k}] in {bits or '4 or 8'} bits")
    (width,) = found
    count = _groups(scales, n, k)
    if group is not None and count != -(-k // group):
        raise ValueError(f"{scales.name} is {list(scales.shape)}, and groups are of {group} numbers in rows of {k}")
    if zeros is not None:
        expect(zeros, (torch.int32,), (-(-n * width // 32), count))
    groups = None if index is None else read_groups(index, k, count, read)
    if groups is not None and torch.equal(groups, torch.arange(k) // (k // count)):
        groups = None
    plain = width == 4 and scales.dtype == torch.float16 and groups is None
    name = four_bit_format(k // count, n, k, ordered=False) if plain else None
    tensors = numbers, scales, *([] if zeros is None else [zeros]), *([] if groups is None else [own[".weight_g_idx"]])

    def integers(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Integers:
        numbers, scales, *more = map(read, tensors)
        finite(scales, tensors[1])
        lifted = torch.full((n, count), 1 << (width - 1), dtype=torch.uint8)
        if zeros is not None:
            lifted = unpack(more.pop(0).t().contiguous(), width)[:, :n].t()
        return Integers(
            n,
            lambda rows: unpack(numbers[rows], width)[:, :k],
            scales.reshape(-1, count).expand(n, count),
            lifted,
            k // count,
            more[0].long() if more else None,
        )

    def lines(read: ReadTensor, own: tuple[SourceTensor, ...]) -> Lines:
        return integers(read, own).lines()

    def decoded(read: ReadTensor, own: tuple[SourceTensor, ...]) -> Numbers:
        return _rounded(integers(read, own).numbers(), scales.dtype)

    return quantised_tensor((n, k), tensors, name, lines, decoded)


def int8_weight(own: Mapping[str, SourceTensor]) -> QuantisedTensor:
    """ "int-quantized" and "naive-quantized": int8 [n, k], with scales of rows, of groups in a row, or one of all."""
    numbers, scales, zeros = own[".weight"], own[".weight_scale"], own.get(".weight_zero_point")
    n, k = matrix(numbers, (torch.int8,))
    count = _groups(scales, n, k)
    if zeros is not None:
        expect(zeros, (torch.int8, torch.uint8, *INTEGERS), scales.shape)

    def decoded(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Numbers:
        numbers, scales, *more = map(read, tensors)
        finite(scales, tensors[1])
        of_rows = scales.reshape(-1, count).expand(n, count)
        lifted = (more[0].int() if more else torch.zeros(1, count, dtype=torch.int32)).reshape(-1, count)
        lifted = lifted.expand(n, count)
        values = Integers(n, lambda rows: numbers[rows], of_rows, lifted, k // count)
        return _rounded(values.numbers(), scales.dtype)

    tensors = numbers, scales, *([] if zeros is None else [zeros])
    return quantised_tensor((n, k), tensors, None, numbers=decoded)


def nvfp4_weight(numbers: SourceTensor, scales: SourceTensor, whole: SourceTensor, *, divided: bool) -> QuantisedTensor:
    """NVFP4: two numbers of four bits (E2M1) to a byte of [n, k / 2], a float8 scale for each 16, and one of ``whole``,
    by which the others are ``divided`` or multiplied. Raises ValueError."""
    n, pairs = matrix(numbers, (torch.uint8,))
    k = 2 * pairs
    if k % _NVFP4_GROUP:
        raise ValueError(f"its rows of {k} numbers are not groups of {_NVFP4_GROUP}")
    expect(scales, (torch.float8_e4m3fn,), (n, k // _NVFP4_GROUP))
    if whole.dtype != torch.float32 or any(size != 1 for size in whole.shape):
        raise ValueError(f"{whole.name} is {whole.dtype} {list(whole.shape)}, not one float32")

    def decoded(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Numbers:
        numbers, scales, factor = map(read, tensors)
        finite(scales, tensors[1])
        finite(1 / factor if divided else factor, tensors[2])

        def decode(rows: slice) -> torch.Tensor:
            of_groups = scales[rows].float()
            each = of_groups / factor.reshape(()) if divided else of_groups * factor.reshape(())
            return unpack_e2m1(numbers[rows]) * each.repeat_interleave(_NVFP4_GROUP, 1)

        return decode

    return quantised_tensor((n, k), (numbers, scales, whole), None, numbers=decoded)


def bits_of(config: Mapping[str, Any]) -> int | None:
    """The bits of a number, where all groups of the configuration agree."""
    found = {(group.get("weights") or {}).get("num_bits") for group in (config.get("config_groups") or {}).values()}
    (bits,) = found if len(found) == 1 else (None,)
    return None if bits is None else whole({"num_bits": bits}, "num_bits")


def group_of(config: Mapping[str, Any]) -> int | None:
    """The numbers of a group, where all groups of the configuration agree that rows have some."""
    parts = [group.get("weights") or {} for group in (config.get("config_groups") or {}).values()]
    found = {whole(part, "group_size", default=0) if part.get("strategy") == "group" else 0 for part in parts}
    return found.pop() or None if len(found) == 1 and min(found) >= 0 else None


def has_zeros(config: Mapping[str, Any]) -> bool:
    """Whether every group of the configuration has zeros."""
    groups = [group.get("weights") or {} for group in (config.get("config_groups") or {}).values()]
    return bool(groups) and all(weights.get("symmetric") is False for weights in groups)


def unread_part(config: Mapping[str, Any]) -> str | None:
    """What of the configuration is not read; None if all is."""
    formats = {str(config.get("format"))} | {
        str(group["format"]) for group in (config.get("config_groups") or {}).values() if group.get("format")
    }
    others = sorted(formats - _FORMATS)
    if others:
        return f"in format {', '.join(others)}"
    sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        return f"with sparsity {sparsity}"
    if (config.get("transform_config") or {}).get("config_groups"):
        return "with transforms of activations"
    return None


_FORMATS = {
    "pack-quantized",
    "int-quantized",
    "naive-quantized",
    "float-quantized",
    "nvfp4-pack-quantized",
    "mixed-precision",
}


def _groups(scales: SourceTensor, n: int, k: int) -> int:
    """The number of groups in a row. Raises ValueError unless there is a scale for each, for each row, or one."""
    shape = scales.shape
    if not scales.dtype.is_floating_point or scales.dtype.itemsize < 2:
        raise ValueError(f"its scales are {scales.dtype}")
    if all(size == 1 for size in shape):
        return 1
    count = shape[1] if len(shape) == 2 else 1 if len(shape) == 1 else 0
    if not count or shape[0] != n or k % count:
        raise ValueError(f"{list(shape)} scales {scales.name} do not fit [{n}, {k}]")
    return count


def _rounded(numbers: Numbers, dtype: torch.dtype) -> Numbers:
    return lambda rows: numbers(rows).to(dtype).float()
