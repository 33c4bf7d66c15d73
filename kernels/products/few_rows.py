"""Products of a few rows with several bfloat16 matrices in one call, bit for bit those of ``functional.linear``.

The compiled half is kernels/csrc/products/bfloat16.h, and turned.h for matrices that lie as [k, n]. With AVX-512
torch's own product of one row first copies the matrix into blocks, and reaches half of the memory's speed. Elsewhere
its product of several rows reads the matrix for each of them. Ours reads it once. It keeps the order of torch's sums,
or of the library under it, which depends on the processor and on the shapes. For each shape the order is found by a
comparison with torch, on data that shows any other order. There is no such product without the compiled library, or
where no order fits. The caller then uses torch's.

With a bias, torch adds it in float32, after the sum, and rounds once. A trial tells that too.
"""

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from ..calls import list_addresses, multiply, with_team
from ..native import KERNELS
from .row_order import ROW_ORDER

MOST_ROWS = 4
"""The most rows that one pass over the matrix serves."""

_CHUNKS = (512, 1024, 256, 2048, 384, 768, 128, 64, 4096)
"""Columns that oneDNN may sum at a time: its orders."""
_ORDERS = (0, -1, -2)
"""torch's own orders: by halves, by turns, by pairs. See bfloat16.h."""
_TURNED_ORDERS = (-3,)
"""torch's own order for matrices that lie as [k, n]: by fours. See turned.h."""
_TRIAL_BYTES = 32 << 20  # the largest matrix that a trial makes
_TELLING = 64  # results that show whether a product is rounded before a bias is added
_LEAST = 64  # columns of the matrix: below, a call costs more than the product


class Products:
    """The product for matrices [n, k] and inputs [rows, k]. ``find_product`` makes it. Any thread may call it.

    ``turned``: for matrices that lie as [k, n].
    """

    def __init__(self, rows: int, n: int, k: int, *, order: int, threads: int, turned: bool = False) -> None:
        self.rows, self.n, self.k, self.order, self.threads, self.turned = rows, n, k, order, threads, turned

    @property
    def room(self) -> int:
        """Bytes that kernels need for each input: those for its numbers in the order that they are multiplied in."""
        return 4 * self.rows * self.k if self.order <= 0 and not self.turned else 0

    def __call__(
        self, matrices: Sequence[int], inputs: Sequence[int], biases: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Compute bfloat16 [len(matrices), rows, n]: ``inputs[i] @ matrices[i].T + biases[i]``, given by addresses.

        The addresses point to contiguous bfloat16 data, which must stay valid until the call returns.
        """
        assert KERNELS is not None
        room = torch.empty(len(inputs) * self.room, dtype=torch.uint8)
        added = None if biases is None else list_addresses(biases)
        shape = self.rows, self.n, self.k, self.order
        if self.turned:
            return multiply(KERNELS.turned_products, matrices, inputs, *shape, added, threads=self.threads)
        return multiply(KERNELS.products, matrices, inputs, *shape, room.data_ptr(), added, threads=self.threads)

    def of(self, input: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Compute ``functional.linear`` of contiguous tensors, if turned ``input @ matrix + bias``."""
        assert KERNELS is not None
        out = torch.empty((*input.shape[:-1], self.n), dtype=torch.bfloat16)
        added = 0 if bias is None else bias.data_ptr()
        addresses = (ctypes.c_uint64 * 4)(matrix.data_ptr(), input.data_ptr(), out.data_ptr(), added)
        at = ctypes.addressof(addresses)
        room = torch.empty(self.room, dtype=torch.uint8) if self.room else None
        shape = self.rows, self.n, self.k, self.order
        biases = at + 24 if added else None
        if self.turned:
            turned = KERNELS.turned_products
            with_team(self.threads, lambda team: turned(1, at, at + 8, at + 16, *shape, biases, team))
            return out
        kernel, place = KERNELS.products, None if room is None else room.data_ptr()
        with_team(self.threads, lambda team: kernel(1, at, at + 8, at + 16, *shape, place, biases, team))
        return out


def find_product(
    rows: int, n: int, k: int, matrix: torch.Tensor | None = None, *, biased: bool = False, turned: bool = False
) -> Products | None:
    """Find the product for these shapes. None if none has the bits of ``functional.linear``, ``biased`` with a bias.

    ``turned``: for matrices that lie as [k, n], with the bits of ``input @ matrix`` or ``torch.addmm``.

    The first call for a shape and a number of threads runs a trial of some milliseconds. If the shape is too large to
    make a matrix for the trial, it uses ``matrix`` [n, k], contiguous bfloat16, if given. Where each row is multiplied
    as if alone, the product has the bits of ``functional.linear`` on each row.
    """
    if ROW_ORDER.alone and 1 < rows <= MOST_ROWS:
        alone = find_product(1, n, k, matrix, biased=biased, turned=turned)
        if alone is None:
            return None
        return Products(rows, n, k, order=alone.order, threads=alone.threads, turned=turned)
    shape = rows, n, k, torch.get_num_threads(), biased, turned
    if shape in _FOUND:
        return _FOUND[shape]
    if KERNELS is None or not 1 <= rows <= MOST_ROWS or k < _LEAST:
        return None
    if n * k * 2 <= _TRIAL_BYTES:
        whole, inputs = _trial(rows, n, k)
        _FOUND[shape] = _found(whole.t().contiguous() if turned else whole, inputs, biased=biased, turned=turned)
    elif matrix is not None:
        inputs = [_chance(rows, k, seed) for seed in range(4)]
        _FOUND[shape] = _found(matrix, inputs, biased=biased, turned=turned, telling=True)
    return _FOUND.get(shape)


def rounds_once(input: torch.Tensor, bias: torch.Tensor, n: int) -> bool:
    """Return whether torch adds ``bias`` [n] to products of ``input`` [.., k] before it rounds them: by ``addmm``.

    It does so for contiguous inputs of two or three dimensions.
    """
    if input.dtype != torch.bfloat16 or bias.dtype != torch.bfloat16 or input.dim() not in (2, 3):
        return False
    if type(bias) not in (torch.Tensor, nn.Parameter) or bias.shape != (n,):
        return False
    return input.is_contiguous() and bias.is_contiguous() and bias.is_cpu


def is_untried(rows: int, n: int, k: int, *, biased: bool = False) -> bool:
    """Return whether only a trial on an actual matrix can tell if there is a product for these shapes."""
    if KERNELS is None or not 1 <= rows <= MOST_ROWS or k < _LEAST or n * k * 2 <= _TRIAL_BYTES:
        return False
    return (1 if ROW_ORDER.alone else rows, n, k, torch.get_num_threads(), biased, False) not in _FOUND


_FOUND: dict[tuple[int, int, int, int, bool, bool], Products | None] = {}
"""Products by rows, n, k, number of threads, whether there is a bias, and whether matrices are turned."""


def orders_agree(rows: int, n: int, k: int, *, biased: bool = False) -> bool:
    """Return whether torch's product with a matrix [n, k] has the same bits when the matrix lies as [k, n] in memory.

    ``biased``: with a bias, by ``torch.addmm``. The trial is that of ``find_product``. A shape that is
    too large for it counts as one with other bits: on random numbers one result in thousands differs.
    """
    shape = 1 if ROW_ORDER.alone else rows, n, k, torch.get_num_threads(), biased
    if n * k * 2 > _TRIAL_BYTES:
        return False
    if shape not in _AGREE:
        matrix, inputs = _trial(shape[0], n, k)
        turned = matrix.t().contiguous()
        _AGREE[shape] = all(
            torch.equal(functional.linear(x, matrix, bias), _multiply_turned(x, turned, bias))
            for x, bias in _cases(functional.linear, matrix, inputs, biased=biased)
        )
    return _AGREE[shape]


_AGREE: dict[tuple[int, int, int, int, bool], bool] = {}
"""What ``orders_agree`` found, by rows, n, k, number of threads and whether there is a bias."""


def _multiply_turned(x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return x @ matrix if bias is None else torch.addmm(bias, x, matrix)


def _found(
    matrix: torch.Tensor, inputs: Sequence[torch.Tensor], *, biased: bool, turned: bool, telling: bool = False
) -> Products | None:
    """Find the product with torch's bits on ``matrix`` for all ``inputs``.

    ``telling``: only if all other orders give other bits. Otherwise the data would prove nothing.
    """
    n, k = reversed(matrix.shape) if turned else matrix.shape
    torchs = _multiply_turned if turned else functional.linear
    cases = _cases(torchs, matrix, inputs, biased=biased)
    wanted = [torchs(x, matrix, bias) for x, bias in cases]
    equal: list[Products] = []
    for order in _list_orders(k, turned=turned):
        product = Products(len(inputs[0]), n, k, order=order, threads=torch.get_num_threads(), turned=turned)
        if all(torch.equal(product.of(x, matrix, bias), y) for (x, bias), y in zip(cases, wanted, strict=True)):
            if not telling:
                return product
            equal.append(product)
    return equal[0] if len(equal) == 1 else None


def _list_orders(k: int, *, turned: bool) -> list[int]:
    """List the orders in which the kernels of this level sum ``k`` columns."""
    assert KERNELS is not None
    chunks = {-(-chunk // 64) * 64 for chunk in (k, *(chunk for chunk in _CHUNKS if chunk < k))}
    own, takes = (_TURNED_ORDERS, KERNELS.takes_turned) if turned else (_ORDERS, KERNELS.takes_order)
    return [order for order in (*sorted(chunks, reverse=True), *own) if takes(order)]


def _cases(
    torchs: Callable[..., torch.Tensor], matrix: torch.Tensor, inputs: Sequence[torch.Tensor], *, biased: bool
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Give each of ``inputs`` a bias, if so: as large as the products or some times that, so that both show.

    More inputs follow, whose products have more digits than a result. On one of three it shows if they are rounded
    before the bias is added, so there are some for a matrix of one row too.
    """
    if not biased:
        return [(x, None) for x in inputs]
    (rows, k), n = inputs[0].shape, matrix.numel() // inputs[0].shape[1]
    chance = torch.Generator().manual_seed(0)
    cases: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    for at, x in enumerate([*inputs, *(_chance(rows, k, seed) for seed in range(4 + _TELLING // (rows * n)))]):
        size = torchs(x, matrix).float().abs().mean() * 2.0 ** (at % 4)
        cases.append((x, (torch.randn(n, generator=chance) * size).bfloat16()))
    return cases


def _chance(rows: int, k: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, k, generator=torch.Generator().manual_seed(seed)).bfloat16()


def _trial(rows: int, n: int, k: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Make a matrix [n, k] and inputs [rows, k] whose terms cancel in pairs: the products are rounding errors.

    The rows of the matrix repeat, so that making it takes no memory besides its own.
    """
    chance = torch.Generator().manual_seed(0)
    half = k // 2
    order = torch.randperm(2 * half, generator=chance)

    def paired(count: int, sign: int) -> torch.Tensor:
        numbers = torch.zeros(count, k, dtype=torch.bfloat16)
        part = torch.randn(count, half, generator=chance).bfloat16()
        numbers[:, order[:half]], numbers[:, order[half:]] = part, sign * part
        return numbers

    unique = paired(min(n, 64), -1)
    matrix = torch.empty(n, k, dtype=torch.bfloat16)
    for first in range(0, n, len(unique)):
        matrix[first : first + len(unique)] = unique[: n - first]
    return matrix, [paired(rows, 1) for _ in range(8)]
