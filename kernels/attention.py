"""Attention of a few rows to pages of keys and values as they are in memory. The compiled half is attention.c."""

from collections.abc import Iterator, Sequence

import torch

from .calls import memory
from .kv.base import PageShape


def scores(
    query: torch.Tensor, planes: Sequence[int], shape: PageShape, scaling: float, out: torch.Tensor, at: int
) -> None:
    """``KVFormat.scores`` where the planes hold the keys as they are."""
    rows = query.reshape(shape.heads, -1, shape.dim)
    into = out.view(shape.heads, rows.shape[1], out.shape[2])
    wide = rows.to(torch.promote_types(query.dtype, torch.float32))
    for keys, place in _pages(planes, shape, at, out.shape[2]):
        products = torch.matmul(wide, keys.to(wide.dtype).mT).to(query.dtype)
        into[:, :, place] = products.mul_(scaling)


def weigh(probabilities: torch.Tensor, at: int, planes: Sequence[int], shape: PageShape, out: torch.Tensor) -> None:
    """``KVFormat.weigh`` where the planes hold the values as they are."""
    rows = probabilities.reshape(shape.heads, -1, probabilities.shape[2])
    into = out.view(shape.heads, rows.shape[1], shape.dim)
    for values, place in _pages(planes, shape, at, rows.shape[2]):
        into.baddbmm_(rows[:, :, place].to(out.dtype), values.to(out.dtype))


def _pages(planes: Sequence[int], shape: PageShape, at: int, end: int) -> Iterator[tuple[torch.Tensor, slice]]:
    """The numbers of each page, [H, tokens, D], and which tokens they are; none from ``end`` on."""
    for plane in planes if shape.numbers else ():
        there = max(0, min(shape.tokens, end - at))
        numbers = memory(plane, shape.size).view(shape.dtype).view(shape.heads, shape.tokens, shape.dim)
        yield numbers[:, :there], slice(at, at + there)
        at += shape.tokens
