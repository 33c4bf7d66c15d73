"""Attention of a few queries to pages of keys and values as they are. The compiled half is csrc/kv/attention.h."""

import ctypes
from collections.abc import Callable, Iterator, Sequence

import torch

from ..calls import view_memory, with_team
from ..native import KERNELS
from .base import PageShape

_DTYPES = (torch.bfloat16, torch.float32)
_MOST_DIM = 1024
"""Elements of a key that attention.h has room for."""


def compute_scores(
    query: torch.Tensor, pages: Sequence[int], shape: PageShape, scaling: float, out: torch.Tensor, at: int
) -> None:
    """``KVFormat.scores`` where pages hold the keys as they are."""
    if not query.numel():
        return
    rows = query.view(shape.heads, -1, shape.dim)
    if KERNELS is not None and _is_compiled_for(shape, rows, out):
        _call(KERNELS.scores, pages, rows, out, shape, at, out.shape[2], scaling)
        return
    into = out.view(shape.heads, rows.shape[1], out.shape[2])
    wide = rows.to(torch.promote_types(query.dtype, torch.float32))
    for keys, place in _decode_pages(pages, shape, at, out.shape[2]):
        into[:, :, place] = torch.matmul(wide, keys.to(wide.dtype).mT).to(query.dtype).mul_(scaling)


def weigh(probabilities: torch.Tensor, at: int, pages: Sequence[int], shape: PageShape, out: torch.Tensor) -> None:
    """``KVFormat.weigh`` where pages hold the values as they are."""
    if not probabilities.numel():
        return
    rows = probabilities.view(shape.heads, -1, probabilities.shape[2])
    if KERNELS is not None and _is_compiled_for(shape, rows, out):
        _call(KERNELS.weigh, pages, rows, out, shape, at, rows.shape[2])
        return
    into = out.view(shape.heads, rows.shape[1], shape.dim)
    for values, place in _decode_pages(pages, shape, at, rows.shape[2]):
        into.baddbmm_(rows[:, :, place].to(out.dtype), values.to(out.dtype))


def _is_compiled_for(shape: PageShape, rows: torch.Tensor, out: torch.Tensor) -> bool:
    if shape.dtype not in _DTYPES or shape.dim > _MOST_DIM:
        return False
    return rows.dtype == shape.dtype and out.dtype == torch.float32 and out.is_contiguous()


def _call(
    kernel: Callable[..., None],
    pages: Sequence[int],
    rows: torch.Tensor,
    out: torch.Tensor,
    shape: PageShape,
    at: int,
    end: int,
    *more: float,
) -> None:

    arguments = (
        len(pages),
        (ctypes.c_uint64 * len(pages))(*pages),
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
    )
    with_team(torch.get_num_threads(), lambda team: kernel(*arguments, team))


def _decode_pages(pages: Sequence[int], shape: PageShape, at: int, end: int) -> Iterator[tuple[torch.Tensor, slice]]:
    """Yield the elements of each page, [H, tokens, D], and the slice of its tokens; none from ``end`` on."""
    for data in pages:
        there = max(0, min(shape.tokens, end - at))
        numbers = view_memory(data, shape.size).view(shape.dtype).view(shape.heads, shape.tokens, shape.dim)
        yield numbers[:, :there], slice(at, at + there)
        at += shape.tokens
