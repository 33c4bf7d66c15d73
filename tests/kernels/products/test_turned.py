"""Products with matrices that lie as [k, n]: bit for bit torch's, or none."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.native import KERNELS
from penstock.kernels.products.few_rows import MOST_ROWS, Products, _trial, find_product
from tests.support.levels import held_to, levels

pytestmark = pytest.mark.levels

native = pytest.mark.skipif(KERNELS is None, reason="no compiler at installation")


def addresses(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


@native
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, MOST_ROWS),
    st.one_of(st.integers(1, 300), st.sampled_from([512, 1024])),
    st.one_of(st.integers(64, 300), st.sampled_from([512, 768, 1000, 3072])),
    st.integers(1, 3),
    st.integers(0, 1 << 20),
)
def test_equal_to_torch_in_every_bit(rows: int, n: int, k: int, count: int, seed: int) -> None:
    product, biased = find_product(rows, n, k, turned=True), find_product(rows, n, k, biased=True, turned=True)
    chance = torch.Generator().manual_seed(seed)
    matrices = [torch.randn(k, n, generator=chance).bfloat16() for _ in range(count)]
    inputs = [torch.randn(rows, k, generator=chance).bfloat16() * 2.0 ** (seed % 40 - 20) for _ in range(count)]
    biases = [torch.randn(n, generator=chance).bfloat16() * 2.0 ** (seed % 43 - 20) for _ in range(count)]
    if product is not None:
        found = product(addresses(matrices), addresses(inputs))
        for one, matrix, state in zip(found, matrices, inputs, strict=True):
            assert torch.equal(one, state @ matrix)
    if biased is not None:
        found = biased(addresses(matrices), addresses(inputs), addresses(biases))
        for one, matrix, state, bias in zip(found, matrices, inputs, biases, strict=True):
            assert torch.equal(one, torch.addmm(bias, state, matrix))


@native
def test_there_is_one_for_the_usual_shapes() -> None:
    """Otherwise the test above would pass with none at all."""
    for biased in (False, True):
        for rows, n, k in ((1, 2304, 768), (1, 768, 3072), (4, 768, 768)):
            assert find_product(rows, n, k, biased=biased, turned=True) is not None


@native
def test_an_order_that_differs_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda b, x, w: addmm(b, x.flip(-1), w.flip(0)))
    assert find_product(2, 304, 1536, biased=True, turned=True) is None


def sum_by_fours(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """What turned.h says, step by step. Products of bfloat16 numbers are exact in float32."""
    sums = torch.zeros(4, len(x), matrix.shape[1])
    whole = len(matrix) // 4 * 4
    for number, row in enumerate(matrix.float()):
        sums[number % 4 if number < whole else 0] += x[:, number, None].float() * row
    return sums[0] + sums[1] + sums[2] + sums[3]


@levels
@pytest.mark.parametrize(("n", "k"), [(37, 64), (300, 101), (128, 776), (16, 1030)])
def test_the_order_of_torch_is_kept_at_every_level(level: str, n: int, k: int) -> None:
    """Numbers that cancel, so that another order gives other bits. Rows and columns that fill no block as well."""
    for rows in range(1, MOST_ROWS + 1):
        matrix, inputs = _trial(rows, n, k)
        turned, x, bias = matrix.t().contiguous(), inputs[0], (torch.randn(n) * 1e-6).bfloat16()
        with held_to(level):
            product = Products(rows, n, k, order=-3, threads=2, turned=True)
            found = product(addresses([turned]), addresses([x]))[0]
            with_bias = product.of(x, turned, bias)
        wanted = sum_by_fours(x, turned)
        assert torch.equal(found, wanted.bfloat16())
        assert torch.equal(with_bias, (wanted + bias.float()).bfloat16())
        assert not torch.equal(wanted, (x.float() @ matrix.float().t()))
