"""Layouts of GPTQ and AWQ: integers of a few bits, several to an int32, with scales and zeros for groups of a row.

A number is (value - zero) * scale.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ....kernels.formats.registry import FORMATS
from ....kernels.formats.uint4 import pack_values
from ..files.safetensors_file import SourceTensor
from .expected import FLOATS, INTEGERS, expect, finite, matrix, whole
from .quantised_tensor import Lines, Numbers, QuantisedTensor, ReadTensor, as_lines, fits, quantised_tensor

_SLAB = 256  # rows that are put into another order at a time

Values = Callable[[slice], torch.Tensor]
"""The values of some rows of a matrix as they are stored: uint8 [rows, k]."""


class Integers(NamedTuple):
    """The integers of a matrix [n, k]: ``values``, and for each row its ``scales`` and ``zeros``, [n, groups].

    ``size`` numbers are a group. ``groups``, int64 [k], has the group of each column, where they do not ascend.
    """

    n: int
    values: Values
    scales: torch.Tensor
    zeros: torch.Tensor
    size: int
    groups: torch.Tensor | None = None

    def lines(self) -> Lines:
        """As a format with four bits, float16 scales and groups of equal size has them."""
        order = None if self.groups is None else torch.argsort(self.groups, stable=True)

        def rows(start: int) -> torch.Tensor:
            values = self.values(slice(start, min(self.n, start + _SLAB)))
            return values if order is None else values[:, order]

        first = pack_values(rows(0))
        made = torch.empty(self.n, first.shape[1], dtype=first.dtype)
        made[: len(first)] = first
        for start in range(_SLAB, self.n, _SLAB):
            made[start : start + _SLAB] = pack_values(rows(start))
        parts = made, as_lines(self.scales), as_lines(self.zeros.to(torch.uint8))
        return Lines(parts, None if order is None else order.int())

    def numbers(self) -> Numbers:
        """Decoded."""

        def decode(rows: slice) -> torch.Tensor:
            values = self.values(rows).float()
            scales, zeros = self.scales[rows], self.zeros[rows].float()
            each = torch.arange(values.shape[1]) // self.size if self.groups is None else self.groups
            return (values - zeros[:, each]) * scales.float()[:, each]

        return decode


def gptq(own: Mapping[str, SourceTensor], config: Mapping[str, Any], read: ReadTensor) -> QuantisedTensor:
    """GPTQ, of its first version and the second. The columns' groups are those of ``.g_idx``, whatever ``desc_act``
    says. Raises ValueError, and KeyError with the end of a name that is not there."""
    layout = str(config.get("checkpoint_format") or "gptq").lower()
    if layout not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
        raise ValueError(f"its layout is {layout!r}, and penstock reads 'gptq' and 'gptq_v2'")
    numbers, scales, zeros, index = own[".qweight"], own[".scales"], own[".qzeros"], own.get(".g_idx")
    bits, group = whole(config, "bits"), whole(config, "group_size")
    if bits not in (2, 4, 8):
        raise ValueError(f"it has {bits} bits, and penstock reads 2, 4 and 8")
    rows, n = matrix(numbers, (torch.int32,))
    k = rows * 32 // bits
    count, size = _groups(group, k, n, bits, scales)
    if n * bits % 32:
        raise ValueError(f"its {n} zeros of {bits} bits do not fill words of 32")
    expect(zeros, (torch.int32,), (count, n * bits // 32))
    groups = None if index is None else read_groups(index, k, count, read)
    plain = groups is None or torch.equal(groups, torch.arange(k) // size)
    ordered = groups is not None and (bool(config.get("desc_act")) or not plain)
    alike = groups is None or bool((torch.bincount(groups, minlength=count) == k // count).all())
    as_it_is = bits == 4 and scales.dtype == torch.float16 and alike
    name = four_bit_format(group, n, k, ordered=ordered) if as_it_is else None
    # Packing in its first version stored zeros less one.
    less = 0 if layout == "gptq_v2" else 1

    def integers(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Integers:
        return _gptq_integers(read, tensors, bits, less, size)

    tensors = (numbers, scales, zeros, *([own[".g_idx"]] if ordered else []))
    return _integer_tensor((n, k), tensors, name, integers)


def _gptq_integers(read: ReadTensor, tensors: tuple[SourceTensor, ...], bits: int, less: int, size: int) -> Integers:
    """Numbers along k in each int32 of qweight [k * bits / 32, n]; along n in one of qzeros [groups, n * bits / 32]."""
    numbers, scales, zeros, *groups = map(read, tensors)
    finite(scales, tensors[1])

    def values(rows: slice) -> torch.Tensor:
        return unpack(numbers[:, rows].t().contiguous(), bits)

    # A zero of 0 was stored as the highest number.
    lifted = ((unpack(zeros, bits).int() + less) & ((1 << bits) - 1)).t()
    return Integers(numbers.shape[1], values, scales.t(), lifted, size, groups[0].long() if groups else None)


def awq(own: Mapping[str, SourceTensor], config: Mapping[str, Any], read: ReadTensor) -> QuantisedTensor:
    """AWQ as "gemm" stores it. Raises ValueError, and KeyError with the end of a name that is not there."""
    bits = whole(config, "bits", "w_bit", default=4)
    version = str(config.get("version", config.get("format", "gemm"))).lower()
    if version != "gemm":
        raise ValueError(f"version {version!r} of AWQ is not read, only 'gemm'")
    numbers, scales, zeros = own[".qweight"], own[".scales"], own[".qzeros"]
    if bits != 4:
        raise ValueError(f"it has {bits} bits, and penstock reads 4")
    k, eighths = matrix(numbers, (torch.int32,))
    n = 8 * eighths
    group = whole(config, "group_size", "q_group_size", default=128)
    count, size = _groups(group, k, n, bits, scales)
    expect(zeros, (torch.int32,), (count, eighths))
    name = four_bit_format(group, n, k, ordered=False) if scales.dtype == torch.float16 else None

    def integers(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Integers:
        return _awq_integers(read, tensors, size)

    return _integer_tensor((n, k), (numbers, scales, zeros), name, integers)


_AWQ_ORDER = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
"""Which four bits of an int32 hold each of eight numbers."""


def _awq_integers(read: ReadTensor, tensors: tuple[SourceTensor, ...], size: int) -> Integers:
    """Eight numbers along n in an int32 of qweight [k, n / 8] and of qzeros [groups, n / 8], in AWQ's order."""
    numbers, scales, zeros = map(read, tensors)
    finite(scales, tensors[1])

    def apart(packed_eight: torch.Tensor) -> torch.Tensor:
        eights = unpack(packed_eight, 4).view(len(packed_eight), -1, 8)
        return eights[:, :, _AWQ_ORDER].reshape(len(packed_eight), -1).t()

    def values(rows: slice) -> torch.Tensor:
        first = rows.start // 8 * 8
        eights = apart(numbers[:, first // 8 : -(-rows.stop // 8)].contiguous())
        return eights[rows.start - first : rows.stop - first].contiguous()

    return Integers(8 * numbers.shape[1], values, scales.t(), apart(zeros), size)


def _integer_tensor(
    shape: tuple[int, int],
    tensors: tuple[SourceTensor, ...],
    name: str | None,
    integers: Callable[[ReadTensor, tuple[SourceTensor, ...]], Integers],
) -> QuantisedTensor:
    def lines(read: ReadTensor, own: tuple[SourceTensor, ...]) -> Lines:
        return integers(read, own).lines()

    def numbers(read: ReadTensor, own: tuple[SourceTensor, ...]) -> Numbers:
        return integers(read, own).numbers()

    return quantised_tensor(shape, tensors, name, lines, numbers, of_linear=True)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The numbers of ``bits`` bits (2, 4 or 8) in each int32 of [rows, columns], the lowest bits first: uint8."""
    whole = packed.contiguous().view(torch.uint8).view(len(packed), -1)
    if bits == 8:
        return whole
    parts = [whole >> shift & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, 2).view(len(packed), -1)


def read_groups(index: SourceTensor, k: int, count: int, read: ReadTensor) -> torch.Tensor:
    """int64 [k]: the group of each column, one of ``count``. Raises ValueError."""
    expect(index, INTEGERS, (k,))
    groups = read(index).long()
    if int(groups.min()) < 0 or int(groups.max()) >= count:
        raise ValueError(f"{index.name} names groups that have no scales, of which there are {count}")
    return groups


def _groups(given: int, k: int, n: int, bits: int, scales: SourceTensor) -> tuple[int, int]:
    """The number of groups in a row of ``k`` numbers, and their size, where the configuration gives it (-1: the row);
    raises ValueError unless ``scales`` has a line of ``n`` for every one."""
    if given < -1:
        raise ValueError(f"quantization_config has group_size {given}")
    size = k if given in (-1, 0) else given
    count = -(-k // size)
    try:
        expect(scales, FLOATS, (count, n))
    except ValueError as error:
        raise ValueError(
            f"it has {k} columns in {bits} bits, and groups of {given} numbers in rows of {k} do not fit: {error}"
        ) from error
    return count, size


def four_bit_format(group: int, n: int, k: int, *, ordered: bool) -> str | None:
    """The format of four-bit numbers in groups of ``group`` (-1: a whole row), if there is one."""
    sizes = [str(group), *(["row"] if group in (-1, 0, k) else [])]
    names = [f"uint4-{size}{'-ordered' if ordered else ''}" for size in sizes]
    return next((name for name in names if name in FORMATS and fits(name, n, k)), None)
