"""Quantised checkpoints: layouts that Penstock reads, and layouts with names or orders that it may not know."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.support.quantised_checkpoints import Pair, Quantised, awq, fp8, gptq, save_pair

_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
_BLOCKS = _FP8 | {"weight_block_size": [128, 128]}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
_ATTENTION = r"layers\..*[qkv]_proj\.weight"
"""Those that read all hidden columns, of which there are 64."""
_ORDER = torch.randperm(64, generator=torch.Generator().manual_seed(1))


def _per_tensor(end: str, shape: torch.Size) -> Quantised:
    values, scale = torch.randn(shape).to(torch.float8_e4m3fn), torch.rand(()) * 0.1 + 0.01
    return {".weight": values, end: scale}, values.float() * scale


def _per_row(end: str, shape: torch.Size) -> Quantised:
    values, scales = torch.randn(shape).to(torch.float8_e4m3fn), torch.rand(shape[0], 1) * 0.1 + 0.01
    return {".weight": values, end: scales}, values.float() * scales


def _renamed(end: str, shape: torch.Size) -> Quantised:
    parts, numbers = fp8(shape)
    return {".weight": parts[".weight"], end: parts[".weight_scale_inv"]}, numbers


def _saved(
    config: dict[str, Any], quantise: Callable[[torch.Size], Quantised], weights: str = r"layers\..*proj\.weight"
) -> Callable[[Path, str], Pair]:
    return lambda folder, model: save_pair(folder, model, config, quantise, weights=weights)


_SCALES = (".qscale_weight", ".scale", ".weight_scale", ".weight_scale_inv", ".scales", ".w_scale")

QUANTISED: dict[str, Callable[[Path, str], Pair]] = {
    "fp8": _saved(_BLOCKS, fp8),
    **{f"fp8{end} tensor": _saved(_FP8, partial(_per_tensor, end)) for end in _SCALES},
    **{f"fp8{end} row": _saved(_FP8, partial(_per_row, end)) for end in _SCALES},
    **{f"fp8{end} block": _saved(_BLOCKS, partial(_renamed, end)) for end in _SCALES},
    "gptq": _saved(_GPTQ, gptq(32)),
    "gptq v2": _saved(_GPTQ | {"checkpoint_format": "gptq_v2"}, gptq(32, version=2)),
    "gptq in order": _saved(_GPTQ | {"desc_act": True}, gptq(32, order=_ORDER), _ATTENTION),
    "gptq in an order it denies": _saved(_GPTQ, gptq(32, order=_ORDER), _ATTENTION),
    "awq": _saved(_AWQ, awq(32)),
}
"""By name: saves a model of a type quantised, and one with the same numbers."""
