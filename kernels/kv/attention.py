"""Attention of a few rows to pages of keys and values as they are in memory. The compiled half is attention.c."""

import ctypes
from collections.abc import Callable, Iterator, Sequence

import torch

from ..calls import memory, share
from ..native import COMPILED
from .base import PageShape

LEVEL: int | None = COMPILED.penstock_attention_level() if COMPILED is not None else None
"""What attention.c may use: 0 any vectors, 1 AVX2, 2 AVX512 with bfloat16; None where it was not compiled."""

_COMPILED = (torch.bfloat16, torch.float32)
_MOST_DIM = 1024  # numbers in a key that attention.c has room for


def scores(
    query: torch.Tensor, planes: Sequence[int], shape: PageShape, scaling: float, out: torch.Tensor, at: int
) -> None:
    """``KVFormat.scores`` where the planes hold the keys as they are."""
    if not query.numel():
        return
    rows = query.view(shape.heads, -1, shape.dim)
    if COMPILED is not None and _suits(shape):
        _call(COMPILED.penstock_scores, planes, rows, out, shape, at, out.shape[2], scaling)
        return
    into = out.view(shape.heads, rows.shape[1], out.shape[2])
    wide = rows.to(torch.promote_types(query.dtype, torch.float32))
    for keys, place in _pages(planes, shape, at, out.shape[2]):
        into[:, :, place] = torch.matmul(wide, keys.to(wide.dtype).mT).to(query.dtype).mul_(scaling)


def weigh(probabilities: torch.Tensor, at: int, planes: Sequence[int], shape: PageShape, out: torch.Tensor) -> None:
    """``KVFormat.weigh`` where the planes hold the values as they are."""
    if not probabilities.numel():
        return
    rows = probabilities.view(shape.heads, -1, probabilities.shape[2])
    if COMPILED is not None and _suits(shape):
        _call(COMPILED.penstock_weigh, planes, rows, out, shape, at, rows.shape[2])
        return
    into = out.view(shape.heads, rows.shape[1], shape.dim)
    for values, place in _pages(planes, shape, at, rows.shape[2]):
        into.baddbmm_(rows[:, :, place].to(out.dtype), values.to(out.dtype))


def _suits(shape: PageShape) -> bool:
    return shape.dtype in _COMPILED and shape.dim <= _MOST_DIM


def _call(
    kernel: Callable[..., None],
    planes: Sequence[int],
    rows: torch.Tensor,
    out: torch.Tensor,
    shape: PageShape,
    at: int,
    end: int,
    *more: float,
) -> None:
    assert rows.dtype == shape.dtype
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    with share(torch.get_num_threads()) as team:
        kernel(
            len(planes),
            (ctypes.c_uint64 * len(planes))(*planes),
            rows.data_ptr(),
            out.data_ptr(),
            shape.heads,
            rows.shape[1],
            shape.tokens,
            shape.dim,
            at,
            end,
            *more,
            shape.dtype == torch.bfloat16,
            LEVEL,
            team,
        )


def _pages(planes: Sequence[int], shape: PageShape, at: int, end: int) -> Iterator[tuple[torch.Tensor, slice]]:
    """The numbers of each page, [H, tokens, D], and which tokens they are; none from ``end`` on."""
    for plane in planes:
        there = max(0, min(shape.tokens, end - at))
        numbers = memory(plane, shape.size).view(shape.dtype).view(shape.heads, shape.tokens, shape.dim)
        yield numbers[:, :there], slice(at, at + there)
        at += shape.tokens
