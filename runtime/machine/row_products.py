"""Products of a row with weights in memory, to be timed: as they are, and packed."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from ...kernels.formats.base import Format
from ...kernels.formats.planes import locate
from ...kernels.products.few_rows import find_product
from ...tiering.units import align_up

_ALIGNMENT = 64


class Work(NamedTuple):
    """``run`` is called with numbers below ``copies`` and reads ``size`` bytes each time. ``compiled``: by a kernel of
    ours."""

    run: Callable[[int], object]
    copies: int
    size: int
    compiled: bool


def best_rate(work: Work, seconds: float, wait: Callable[[], object] = lambda: None) -> float:
    """The best rate, in bytes per second, of turns with all copies for about ``seconds``. ``wait`` waits for the end of
    one."""
    best, spent = math.inf, 0.0
    with torch.inference_mode():
        work.run(0)
        wait()
        while spent < seconds:
            start = time.perf_counter()
            for copy in range(work.copies):
                work.run(copy)
            wait()
            took = time.perf_counter() - start
            best, spent = min(best, took), spent + took
    return work.copies * work.size / best


def copy_planes(planes: Sequence[torch.Tensor], memory: int) -> list[list[torch.Tensor]]:
    """As many copies of ``planes`` as ``memory`` bytes hold. Those of a plane are one piece of memory, which goes at
    once."""
    count = max(1, memory // sum(plane.nbytes for plane in planes))
    rooms = [
        torch.empty(count, align_up(plane.numel(), _ALIGNMENT), dtype=plane.dtype)[:, : plane.numel()]
        for plane in planes
    ]
    for room, plane in zip(rooms, planes, strict=True):
        room[:] = plane.flatten()
    return [[room[copy].view(plane.shape) for room, plane in zip(rooms, planes, strict=True)] for copy in range(count)]


def plain_product(weights: torch.Tensor, row: torch.Tensor, memory: int) -> Work:
    """``row`` [1, k] times bfloat16 ``weights`` [n, k]."""
    copies = [planes[0] for planes in copy_planes([weights], memory)]
    product = find_product(1, *weights.shape)
    if product is None:
        return Work(lambda copy: functional.linear(row, copies[copy]), len(copies), weights.nbytes, False)
    run, address = product, [row.data_ptr()]
    return Work(lambda copy: run([copies[copy].data_ptr()], address), len(copies), weights.nbytes, True)


def packed_product(format_: Format, weights: torch.Tensor, row: torch.Tensor, memory: int) -> Work:
    """The same with ``weights`` in ``format_``."""
    n, k = weights.shape
    planes = format_.encode([weights], n, k)
    size, copies = sum(plane.nbytes for plane in planes), copy_planes(planes, memory)
    product = format_.find_product(1, n, k)
    if product is None:
        room = torch.empty_like(weights)

        def decoded(copy: int) -> None:
            format_.decode(copies[copy], n, k, slice(0, n), room)
            functional.linear(row, room)

        return Work(decoded, len(copies), size, False)
    run, address = product, [row.data_ptr()]
    places = [(locate(format_, planes, n, k), planes) for planes in copies]  # which must stay
    return Work(lambda copy: run([places[copy][0]], address), len(copies), size, True)
