"""Calls of compiled products: several matrices in one call, and threads shared between concurrent calls."""

import ctypes
from collections.abc import Callable, Sequence

import torch

_under_way: set[object] = set()  # one entry per running call
_most: int | None = None


def limit_teams(most: int | None) -> None:
    """Limit the threads of calls from now on to ``most``, or to nothing (None)."""
    global _most
    _most = most


def with_team(threads: int, call: Callable[[int], None]) -> None:
    """Run ``call`` with the number of ``threads`` that it should use.

    Concurrent calls share the cores. A full team of threads for each would wait for its turns. An interrupt at any
    point leaves no call behind that others would share with for ever.
    """
    this = object()
    try:
        _under_way.add(this)
        call(max(1, min(threads if _most is None else _most, threads // len(_under_way))))
    finally:
        _under_way.discard(this)


Argument = int | ctypes.Array[ctypes.c_int64] | ctypes.Array[ctypes.c_uint64] | None
"""A number, several, or addresses; None where there are none."""


def list_addresses(addresses: Sequence[int]) -> ctypes.Array[ctypes.c_uint64]:
    return (ctypes.c_uint64 * len(addresses))(*addresses)


def multiply(
    kernel: Callable[..., None],
    matrices: Sequence[int],
    inputs: Sequence[int],
    rows: int,
    n: int,
    *numbers: "Argument",
    threads: int,
) -> torch.Tensor:
    """Multiply several matrices by their inputs in one call. Returns bfloat16 [len(inputs), rows, n].

    ``kernel(count, matrices, inputs, outs, rows, n, *numbers, threads)`` writes the result to ``outs``. Matrices and
    inputs are given by their addresses. A matrix has its planes one after the other. The memory must stay valid until
    the call returns. The number of threads changes no bit.
    """
    count = len(inputs)
    out = torch.empty(count, rows, n, dtype=torch.bfloat16)
    first, size = out.data_ptr(), 2 * rows * n
    arguments = (
        count,
        list_addresses(matrices),
        list_addresses(inputs),
        list_addresses(range(first, first + count * size, size)),
        rows,
        n,
        *numbers,
    )
    with_team(threads, lambda team: kernel(*arguments, team))
    return out


def make_product(
    kernel: Callable[..., None],
    rows: int,
    n: int,
    *numbers: "Argument",
    planes: int = 1,
    room: int,
) -> Callable[[Sequence[Sequence[int]], Sequence[int]], torch.Tensor]:
    """Make a weight format's product (``formats.base.Product``) of ``rows`` rows with several matrices at once.

    A matrix has ``planes`` addresses. Those of planes that it lacks are 0. Behind ``numbers`` the kernel is given
    memory, ``room`` bytes for each matrix.
    """

    def product(matrices: Sequence[Sequence[int]], inputs: Sequence[int]) -> torch.Tensor:
        space = torch.empty(len(inputs) * room, dtype=torch.uint8)
        addresses = [plane for matrix in matrices for plane in (*matrix, *[0] * (planes - len(matrix)))]
        more = (*numbers, space.data_ptr())
        return multiply(kernel, addresses, inputs, rows, n, *more, threads=torch.get_num_threads())

    return product


def view_memory(address: int, length: int) -> torch.Tensor:
    """View ``length`` bytes at ``address`` as a tensor, uint8 [length]. It does not keep them alive."""
    return torch.frombuffer((ctypes.c_uint8 * length).from_address(address), dtype=torch.uint8)
