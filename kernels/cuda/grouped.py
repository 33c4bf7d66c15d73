"""Products of tokens with several experts in one launch, with matrices anywhere in an arena on the device.

Tokens are sorted by expert, and a program takes a block of one expert's tokens, as in the grouped products of
"MegaBlocks: Efficient Sparse Training with Mixture-of-Experts", 2022. The program finds its expert by itself, so the
routing of tokens needs no wait for the device.
"""

import torch

from ..formats.int8 import locate_scales
from .language import OPERAND, as_target, store, tl, triton

_NARROW = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 128, "num_warps": 4}
_WIDE = {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8}
"""Block sizes for few tokens per expert, where reading the matrices takes the time, and for many tokens."""
ALIGNMENT = 64
"""Bytes. A matrix in an arena begins at a multiple of them."""


def multiply_grouped(
    x: torch.Tensor, starts: torch.Tensor, arena: torch.Tensor, offsets: torch.Tensor, n: int, *, int8: bool = False
) -> torch.Tensor:
    """Compute ``x[starts[e] : starts[e + 1]]`` times the transpose of matrix e, for every e.

    Returns bfloat16 [tokens, n].

    ``x`` is [tokens, k], bfloat16. ``starts`` [experts + 1] are non-decreasing integers from 0 to tokens. ``arena`` is
    [bytes], uint8. ``offsets`` [experts], int64, are the positions of the matrices [n, k] in it, multiples of
    ALIGNMENT. A matrix is bfloat16, or in format ``int8``, and may appear several times. Sums are in float32, rounded
    once. Raises ValueError for other dtypes or counts.
    """
    tokens, k = x.shape
    experts = len(offsets)
    if len(starts) != experts + 1 or x.dtype != torch.bfloat16 or offsets.dtype != torch.int64:
        raise ValueError(
            f"{experts} experts need {experts + 1} starts, offsets in int64 and bfloat16 tokens, "
            f"not {len(starts)}, {offsets.dtype} and {x.dtype}"
        )
    out = x.new_empty(tokens, n)
    if not tokens or not n:
        return out
    sizes = _NARROW if tokens <= experts * _NARROW["BLOCK_M"] else _WIDE
    # The last block of each expert with tokens may be partial.
    blocks = tokens // sizes["BLOCK_M"] + min(experts, tokens)
    _multiply[blocks, triton.cdiv(n, sizes["BLOCK_N"])](
        x.contiguous(),
        starts.contiguous(),
        arena,
        offsets.contiguous(),
        as_target(out),
        n,
        k,
        experts,
        locate_scales(n, k),
        EXPERTS=triton.next_power_of_2(experts),
        INT8=int8,
        OPERAND=OPERAND,
        ALIGNMENT=ALIGNMENT,
        **sizes,
    )
    return out


@triton.jit
def _multiply(
    x: tl.tensor,
    starts: tl.tensor,
    arena: tl.tensor,
    offsets: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    experts: tl.tensor,
    scales: tl.tensor,
    EXPERTS: tl.constexpr,
    INT8: tl.constexpr,
    OPERAND: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Multiply in program (i, j) block i of BLOCK_M tokens, counted over all experts, by BLOCK_N rows of the matrix.

    ``scales`` is the offset of the scales from the beginning of a matrix.
    """
    index = tl.program_id(0)
    each = tl.arange(0, EXPERTS)
    begins = tl.load(starts + each, mask=each < experts, other=0).to(tl.int64)
    stops = tl.load(starts + each + 1, mask=each < experts, other=0).to(tl.int64)
    blocks = (stops - begins + BLOCK_M - 1) // BLOCK_M
    last = tl.cumsum(blocks, 0)
    mine = (last - blocks <= index) & (index < last)
    if tl.sum(mine.to(tl.int32), 0) == 0:
        return
    expert = tl.sum(tl.where(mine, each, 0), 0)
    stop = tl.sum(tl.where(mine, stops, 0), 0)
    token = tl.sum(tl.where(mine, begins + (index - last + blocks) * BLOCK_M, 0), 0) + tl.arange(0, BLOCK_M)
    matrix = arena + tl.multiple_of(tl.load(offsets + expert), ALIGNMENT)

    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    if INT8:
        line = matrix.to(tl.pointer_type(tl.int8)) + output.to(tl.int64)[:, None] * k
    else:
        line = matrix.to(tl.pointer_type(tl.bfloat16)) + output.to(tl.int64)[:, None] * k
    state = x + token[:, None] * k
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for at in range(0, k, BLOCK_K):
        column = at + tl.arange(0, BLOCK_K)
        tokens = tl.load(state + column, mask=(token[:, None] < stop) & (column < k), other=0.0)
        weights = tl.load(line + column, mask=(output[:, None] < n) & (column < k), other=0)
        total = tl.dot(tokens.to(OPERAND), tl.trans(weights.to(OPERAND)), total)
    if INT8:
        scale = (matrix + scales).to(tl.pointer_type(tl.bfloat16)) + output
        total = total * tl.load(scale, mask=output < n, other=0.0).to(tl.float32)
    store(out + token[:, None] * n + output, total, (token[:, None] < stop) & (output < n))
