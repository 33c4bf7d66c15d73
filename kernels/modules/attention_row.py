"""Attention of one query, bit for bit that of torch's ``scaled_dot_product_attention``.

The compiled half is csrc/modules/attention_row.h. torch multiplies a single query by a loop that takes a hundred
nanoseconds for each token and head. The order of its sums depends on its build and on the level of instructions that it
uses. It is found by a comparison with torch, on data that shows any other order. Where none fits, or nothing was
compiled, the caller uses torch's.
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional

from ..calls import with_team
from ..native import KERNELS, LevelKernels
from ..products.autocast import autocasts

_STEP, _MOST = 16, 256
"""Numbers in a key: a multiple of, at most."""
_SHARED = 1 << 19
"""Numbers of queries times tokens from which several threads are worth it."""
_TORCHS = functional.scaled_dot_product_attention


class RowAttention(NamedTuple):
    """Attention of one query as a torch computes it whose registers have so many ``lanes``, and which rounds the sum of
    its blocks once if it is ``fused``."""

    lanes: int
    fused: bool
    kernels: LevelKernels

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        sums: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Compute [B, 1, Hq, D] for ``query`` [B, Hq, 1, D], contiguous, ``key`` and ``value`` [B, H, T, D], laid out
        as ``_is_laid_out`` says. ``sums``, float32 [B, Hq], takes the sum of all weights. None if a score is not
        finite."""
        batch, count, _, dim = query.shape
        _, heads, tokens, _ = key.shape
        out = torch.empty(batch, 1, count, dim, dtype=query.dtype)
        numbers = (
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            out.data_ptr(),
            None if sums is None else sums.data_ptr(),
            batch * heads,
            count // heads,
            tokens,
            dim,
            key.stride(1),
            value.stride(1),
            scaling,
            self.lanes,
            self.fused,
        )
        if query.numel() * tokens < _SHARED:
            return out if self.kernels.attend_row(*numbers, 1) else None
        finite: list[int] = []
        with_team(torch.get_num_threads(), lambda team: finite.append(self.kernels.attend_row(*numbers, team)))
        return out if finite[0] else None


def attend_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor | None:
    """Compute [B, 1, Hq, D]: attention of ``query`` [B, Hq, 1, D] to all of ``key`` and ``value`` [B, H, T, D].

    None where only torch computes it: for other dtypes, devices, layouts or dimensions, with gradients, under autocast,
    or where somebody has chosen another implementation.
    """
    if KERNELS is None or not (type(query) is type(key) is type(value) is torch.Tensor):
        return None
    dim = query.shape[-1]
    if query.dtype != torch.bfloat16 or dim % _STEP or not 0 < dim <= _MOST or not _is_laid_out(query, key, value):
        return None
    if torch._C._len_torch_function_stack():
        return None
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return None
    if autocasts() or not torch._C._get_flash_sdp_enabled() or functional.scaled_dot_product_attention != _TORCHS:
        return None
    found = find_row_attention(dim)
    return None if found is None else found(query.contiguous(), key, value, dim**-0.5 if scaling is None else scaling)


def _is_laid_out(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the kernel takes them: on the CPU, of one dtype, in keys and values the numbers of a head together, and
    heads equally apart."""
    batch, count, rows, dim = query.shape
    heads, tokens = key.shape[1:3]
    if rows != 1 or key.shape != value.shape or key.shape != (batch, heads, tokens, dim) or not tokens:
        return False
    if not (query.is_cpu and key.is_cpu and value.is_cpu) or not (query.dtype == key.dtype == value.dtype):
        return False
    if count % heads:
        return False
    for each in (key, value):
        apart, within, token, number = each.stride()
        if number != 1 or (token != dim and tokens > 1) or (batch > 1 and apart != heads * within):
            return False
    return True


_FOUND: dict[int, RowAttention | None] = {}
"""By numbers of a key."""


def find_row_attention(dim: int) -> RowAttention | None:
    """Find the attention that has the bits of torch for keys of ``dim`` numbers. None if none has.

    The first call for a ``dim`` runs a trial of some milliseconds.
    """
    if dim not in _FOUND:
        _FOUND[dim] = None if KERNELS is None else try_kernels(dim, KERNELS)
    return _FOUND[dim]


def try_kernels(dim: int, kernels: LevelKernels) -> RowAttention | None:
    """Find the attention by ``kernels`` that has the bits of torch. None if none has."""
    with torch.no_grad():
        for lanes, fused in ((16, True), (8, True), (16, False), (8, False)):
            attention = RowAttention(lanes, fused, kernels)
            if all(attention_is_equal(attention, dim, case) for case in CASES) and sums_are_equal(attention, dim):
                return attention
    return None


CASES = ((45, False), (45, True), (600, False), (1100, True))
"""Tokens, and whether scores are rounding errors (else values are)."""


def attention_is_equal(attention: RowAttention, dim: int, case: tuple[int, bool]) -> bool:
    """Return whether ``attention`` and torch give the same bits where products, or weighted values, cancel in pairs."""
    tokens, by_scores = case
    chance = torch.Generator().manual_seed(tokens)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, generator=chance).bfloat16()

    query, key, value = numbers(6, 1, dim), numbers(2, tokens, dim), numbers(2, tokens, dim)
    if by_scores:
        half, order = dim // 2, torch.randperm(dim, generator=chance)
        query[..., order[:half]] = query[..., order[half:]]
        key[..., order[:half]] = -key[..., order[half:]]
    else:
        half, order = tokens // 2, torch.randperm(tokens // 2 * 2, generator=chance)
        key[:, :, order[:half]] = key[:, :, order[half:]]
        value[:, :, order[:half]] = -value[:, :, order[half:]]
    scaling = 3e6 if by_scores else 0.3
    wanted = functional.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=True)
    out = attention(query, key, value, scaling)
    return out is not None and torch.equal(out.transpose(1, 2), wanted)


def sums_are_equal(attention: RowAttention, dim: int) -> bool:
    """Return whether the sums of weights are torch's. Outputs show their last bits too seldom, and the logarithm that
    torch returns shows them if they are little more than one."""
    chance, tokens, heads = torch.Generator().manual_seed(dim), 700, 64
    query, key = torch.zeros(1, heads, 1, dim), torch.zeros(1, heads, tokens, dim)
    query[..., 0] = 1
    key[..., 0] = -8 - torch.rand(1, heads, tokens, generator=chance)
    key[:, :, 0, 0] = -1 - torch.rand(1, heads, generator=chance) / 2
    key[:, :, -1, 0] = 0  # the greatest score, in the second block
    query, key, sums = query.bfloat16(), key.bfloat16(), torch.empty(heads)
    wanted = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, key, scale=1.0)[1]
    if attention(query, key, key, 1.0, sums) is None:
        return False
    logarithms = wanted.flatten().tolist()
    return torch.equal(torch.tensor([math.exp(each) for each in logarithms]), sums)
