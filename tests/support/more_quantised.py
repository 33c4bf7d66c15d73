"""Quantised weights whose layouts differ in names, shapes and dtypes of scales; as quantised_checkpoints has them."""

import json
from collections.abc import Callable

import torch

from tests.support.quantised_checkpoints import Quantised, eights

Quantise = Callable[[torch.Size], Quantised]

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
NF4 = torch.tensor([-1.0, -0.7, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1.0])
"""Nearly: the table is in the checkpoint."""


def float8(
    end: str,
    block: tuple[int, int] | None = None,
    *,
    shape: Callable[[torch.Tensor], torch.Tensor] = lambda scales: scales,
    dtype: torch.dtype = torch.float32,
    numbers: torch.dtype = torch.float8_e4m3fn,
    more: dict[str, torch.Tensor] | None = None,
) -> Quantise:
    """Scales are called ``end`` and are one for each ``block`` (None: one for all), in ``dtype``; bytes are exponents.
    ``shape`` is how they are stored."""

    def quantise(size: torch.Size) -> Quantised:
        n, k = size
        height, width = (n, k) if block is None else (block[0] or n, block[1] or k)
        values = torch.randn(n, k).to(numbers)
        grid = -(-n // height), -(-k // width)
        if dtype in (torch.uint8, torch.float8_e8m0fnu):
            exponents = torch.randint(110, 130, grid, dtype=torch.uint8)
            scales, meant = exponents.view(dtype), (exponents.float() - 127).exp2()
        else:
            scales = (torch.rand(grid) + 0.1).to(dtype)
            meant = scales.float()
        each = meant.repeat_interleave(height, 0)[:n].repeat_interleave(width, 1)[:, :k]
        return {".weight": values, end: shape(scales)} | (more or {}), values.float() * each

    return quantise


def packed_e2m1(size: torch.Size) -> Quantised:
    """Two numbers of four bits to an int8, and an exponent for each 32, as experts of DeepSeek-V4 have them."""
    n, k = size
    codes, exponents = torch.randint(0, 16, (n, k)), torch.randint(110, 130, (n, k // 32), dtype=torch.uint8)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8).view(torch.int8)
    each = (exponents.float() - 127).exp2().repeat_interleave(32, 1)
    return {".weight": packed, ".scale": exponents.view(torch.float8_e8m0fnu)}, E2M1[codes] * each


def nvfp4(weight: str, whole: str, *, divided: bool) -> Quantise:
    def quantise(size: torch.Size) -> Quantised:
        n, k = size
        codes = torch.randint(0, 16, (n, k))
        scales = (torch.rand(n, k // 16) * 100 + 1).to(torch.float8_e4m3fn)
        one = torch.tensor([3.0])
        each = scales.float() / one if divided else scales.float() * one
        packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
        numbers = E2M1[codes] * each.repeat_interleave(16, 1)
        return {weight: packed, ".weight_scale": scales, whole: one, ".input_scale": torch.ones(1)}, numbers

    return quantise


def compressed(
    bits: int, group: int | None, *, zeros: bool = False, dtype: torch.dtype = torch.float16, order: bool = False
) -> Quantise:
    """compressed-tensors' "pack-quantized": ``group`` numbers share a scale (None: a row)."""

    def quantise(size: torch.Size) -> Quantised:
        n, k = size
        count = k // (group or k)
        values, scales = torch.randint(0, 1 << bits, (n, k)), (torch.rand(n, count) + 0.1).to(dtype)
        middle = torch.full((n, count), 1 << (bits - 1))
        zero = torch.randint(0, 1 << bits, (n, count)) if zeros else middle
        groups = torch.arange(k) // (group or k)
        if order:
            groups = groups[torch.randperm(k)]
        parts = {
            ".weight_packed": eights(values.reshape(n, -1, 32 // bits), bits),
            ".weight_scale": scales,
            ".weight_shape": torch.tensor([n, k]),
        }
        if zeros:
            each = -n % (32 // bits)
            padded = torch.cat((zero, torch.zeros(each, count, dtype=torch.long))).t()
            parts[".weight_zero_point"] = eights(padded.reshape(count, -1, 32 // bits), bits).t().contiguous()
        if order:
            parts[".weight_g_idx"] = groups.int()
        numbers = (values - zero[:, groups]).float() * scales[:, groups].float()
        return parts, numbers if dtype == torch.float16 else numbers.to(dtype).float()

    return quantise


def int8(*, zeros: bool = False, dtype: torch.dtype = torch.float32) -> Quantise:
    """compressed-tensors' "int-quantized"."""

    def quantise(size: torch.Size) -> Quantised:
        n, k = size
        values, scales = torch.randint(-128, 128, (n, k)).to(torch.int8), (torch.rand(n, 1) + 0.1).to(dtype)
        zero = torch.randint(-20, 20, (n, 1)).to(torch.int8)
        numbers = (values.int() - (zero.int() if zeros else 0)).to(dtype) * scales
        return {".weight": values, ".weight_scale": scales} | ({".weight_zero_point": zero} if zeros else {}), numbers

    return quantise


def gptq8(size: torch.Size) -> Quantised:
    """GPTQ with eight bits, in groups of 32."""
    n, k = size
    values, scales = torch.randint(0, 256, (n, k)), torch.randn(n, k // 32).half()
    zeros = torch.randint(1, 256, (n, k // 32))
    groups = torch.arange(k) // 32
    parts = {
        ".qweight": eights(values.t().reshape(k // 4, 4, n).transpose(1, 2), 8),
        ".qzeros": eights((zeros - 1).t().reshape(k // 32, n // 4, 4), 8),
        ".scales": scales.t().contiguous(),
        ".g_idx": groups.int(),
    }
    return parts, (values - zeros[:, groups]).float() * scales[:, groups].float()


def four_bits(*, nested: bool, block: int = 64) -> Quantise:
    """bitsandbytes' NF4, in bfloat16."""

    def quantise(size: torch.Size) -> Quantised:
        n, k = size
        codes, count = torch.randint(0, 16, (n * k,)), n * k // block
        state = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": [n, k]}
        parts = {".weight": (codes[::2] << 4 | codes[1::2]).to(torch.uint8)[:, None], ".weight.quant_map": NF4}
        if nested:
            table, stored = torch.linspace(-1, 1, 256), torch.randint(0, 256, (count,), dtype=torch.uint8)
            whole = torch.rand(-(-count // 4)) + 0.5
            scales = table[stored.int()] * whole.repeat_interleave(4)[:count] + 0.25
            parts |= {
                ".weight.absmax": stored,
                ".weight.nested_absmax": whole,
                ".weight.nested_quant_map": table,
            }
            state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": 0.25}
        else:
            scales = torch.rand(count) + 0.1
            parts[".weight.absmax"] = scales
        raw = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
        parts[".weight.quant_state.bitsandbytes__nf4"] = raw
        return parts, (NF4[codes] * scales.repeat_interleave(block)).view(n, k)

    return quantise


def int8_rows(size: torch.Size) -> Quantised:
    """bitsandbytes' int8."""
    n, k = size
    values, largest = torch.randint(-127, 128, (n, k)).to(torch.int8), torch.rand(n) + 0.1
    parts = {".weight": values, ".SCB": largest, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, values.float() * largest[:, None] * 7.874015718698502e-3
