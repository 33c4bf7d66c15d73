"""Calls of compiled products: several matrices in one call, and threads shared between calls at once."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

_under_way: list[None] = []  # one entry for each call at this moment


@contextmanager
def share(threads: int) -> Iterator[int]:
    """How many of ``threads`` this call had better use: calls at once share the cores, as a team of threads for each
    would wait for its turns."""
    _under_way.append(None)
    try:
        yield max(1, threads // len(_under_way))
    finally:
        _under_way.pop()


def multiply(
    kernel: Callable[..., None],
    matrices: Sequence[int],
    inputs: Sequence[int],
    rows: int,
    n: int,
    *numbers: int,
    threads: int,
) -> torch.Tensor:
    """[len(inputs), rows, n], bfloat16: what ``kernel(count, matrices, inputs, outs, rows, n, *numbers, threads)``
    writes to ``outs``. Matrices (their planes, one after the other) and inputs are given by their addresses; what lies
    there stays until the call returns. No bit depends on the number of threads."""
    count = len(inputs)
    out = torch.empty(count, rows, n, dtype=torch.bfloat16)
    first, size = out.data_ptr(), 2 * rows * n
    with share(threads) as team:
        kernel(
            count,
            (ctypes.c_uint64 * len(matrices))(*matrices),
            (ctypes.c_uint64 * count)(*inputs),
            (ctypes.c_uint64 * count)(*range(first, first + count * size, size)),
            rows,
            n,
            *numbers,
            team,
        )
    return out


def native_product(
    kernel: Callable[..., None], rows: int, n: int, *numbers: int
) -> Callable[[Sequence[Sequence[int]], Sequence[int]], torch.Tensor]:
    """A product of ``rows`` rows with several matrices at once, as weight formats have it."""

    def product(matrices: Sequence[Sequence[int]], inputs: Sequence[int]) -> torch.Tensor:
        planes = [plane for matrix in matrices for plane in matrix]
        return multiply(kernel, planes, inputs, rows, n, *numbers, threads=torch.get_num_threads())

    return product


def memory(address: int, length: int) -> torch.Tensor:
    """The bytes that lie there, uint8 [length]; they are not kept."""
    return torch.frombuffer((ctypes.c_uint8 * length).from_address(address), dtype=torch.uint8)
