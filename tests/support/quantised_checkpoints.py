"""Tiny checkpoints in the layouts in which models come quantised, each beside one with the numbers that these mean."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.support.tiny_models import save_tiny

Quantised = tuple[dict[str, torch.Tensor], torch.Tensor]
"""What a checkpoint has for a weight, by the end of its name; and the numbers that it means."""


class Pair(NamedTuple):
    """The same model twice: ``plain`` is not quantised."""

    quantised: Path
    plain: Path


def save_pair(
    folder: Path,
    model: str,
    config: Mapping[str, Any],
    quantise: Callable[[torch.Size], Quantised],
    *,
    weights: str = r"layers\..*proj\.weight",
    dtype: torch.dtype = torch.bfloat16,
    **overrides: Any,
) -> Pair:
    """A model of type ``model`` with all weights whose names match ``weights`` quantised as ``config`` says."""
    pair = Pair(folder / "quantised", save_tiny(model, folder / "plain", dtype, **overrides))
    tensors = load_file(pair.plain / "model.safetensors")
    plain, quantised = dict(tensors), dict(tensors)
    for name in [name for name in tensors if re.search(weights, name)]:
        parts, plain[name] = quantise(tensors[name].shape)
        plain[name] = plain[name].to(dtype)
        del quantised[name]
        quantised |= {name.removesuffix(".weight") + end: part for end, part in parts.items()}
    pair.quantised.mkdir()
    for path, made in ((pair.plain, plain), (pair.quantised, quantised)):
        save_file({name: tensor.clone().contiguous() for name, tensor in made.items()}, path / "model.safetensors")
    described = json.loads((pair.plain / "config.json").read_text()) | {"quantization_config": dict(config)}
    (pair.quantised / "config.json").write_text(json.dumps(described))
    return pair


def mxfp4(shape: torch.Size) -> Quantised:
    """Of a stack of experts [experts, inputs, outputs], as gpt-oss has them."""
    experts, k, n = shape
    values = torch.randint(0, 256, (experts, n, k // 32, 16), dtype=torch.uint8)
    scales = torch.randint(110, 130, (experts, n, k // 32), dtype=torch.uint8)
    return {"_blocks": values, "_scales": scales}, convert_moe_packed_tensors(values, scales)


def fp8(shape: torch.Size) -> Quantised:
    n, k = shape
    values = torch.randn(n, k).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-n // 128), -(-k // 128))
    each = scales.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
    return {".weight": values, ".weight_scale_inv": scales}, values.float() * each


def gptq(group: int, *, order: torch.Tensor | None = None, version: int = 1) -> Callable[[torch.Size], Quantised]:
    """``order``: the columns in the order in which they were quantised, if not ascending (desc_act)."""

    def quantise(shape: torch.Size) -> Quantised:
        n, k = shape
        values, scales, zeros = _integers(n, k, group)
        groups = torch.arange(k) // group
        if order is not None:
            groups[order] = torch.arange(k) // group
        stored = zeros if version == 2 else (zeros - 1) & 15
        parts = {
            ".qweight": eights(values.t().reshape(k // 8, 8, n).transpose(1, 2)),
            ".qzeros": eights(stored.t().reshape(k // group, n // 8, 8)),
            ".scales": scales.t().contiguous(),
            ".g_idx": groups.int(),
        }
        return parts, (values - zeros[:, groups]).float() * scales[:, groups].float()

    return quantise


def awq(group: int) -> Callable[[torch.Size], Quantised]:
    def quantise(shape: torch.Size) -> Quantised:
        n, k = shape
        values, scales, zeros = _integers(n, k, group)
        # The order in which AutoAWQ packs eight columns (awq.modules.linear.gemm).
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        parts = {
            ".qweight": eights(values.t().reshape(k, n // 8, 8)[:, :, order]),
            ".qzeros": eights(zeros.t().reshape(k // group, n // 8, 8)[:, :, order]),
            ".scales": scales.t().contiguous(),
        }
        each = torch.arange(k) // group
        return parts, (values - zeros[:, each]).float() * scales[:, each].float()

    return quantise


def _integers(n: int, k: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values [n, k] and zeros [n, groups], int64 below 16, and scales, float16 [n, groups]."""
    groups = n, k // group
    return torch.randint(0, 16, (n, k)), torch.randn(groups).half(), torch.randint(0, 16, groups)


def eights(numbers: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """int32 [..]: numbers of ``bits`` bits [.., 32 / bits] in each, the first in the lowest bits."""
    packed = (numbers << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).int().contiguous()
