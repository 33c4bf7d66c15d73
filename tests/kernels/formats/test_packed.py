"""int8 and int4: every level of instructions gives the same weights, and products with them."""

from itertools import product as pairs

import pytest
import torch
from torch.nn import functional

from penstock.kernels.formats import int8
from penstock.kernels.formats.base import Format, UnsuitableShape
from penstock.kernels.formats.int4 import Int4
from penstock.kernels.formats.int8 import Int8
from penstock.kernels.native import KERNELS
from tests.kernels.formats.test_contract import SHAPES, addresses, decoded, encoded, matrix
from tests.support.levels import held_to, levels

BOTH = [Int8(), Int4(32), Int4(64), Int4(128)]
both = pytest.mark.parametrize("weights", BOTH, ids=[weights.name for weights in BOTH])
native = pytest.mark.skipif(KERNELS is None, reason="no compiler at installation")


def close(found: torch.Tensor, state: torch.Tensor, numbers: torch.Tensor) -> bool:
    """As near as eight bits are to the sum in float32, whose terms may come in any order."""
    wanted = functional.linear(state.double(), numbers.double())
    sizes = functional.linear(state.double().abs(), numbers.double().abs())
    return bool(((found.double() - wanted).abs() <= 2**-8 * wanted.abs() + 1e-5 * sizes).all())


@levels
@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decoding_gives_the_same_bits_at_every_level(weights: Format, shape: tuple[int, int], level: str) -> None:
    planes = encoded(weights, matrix(*shape))
    with held_to(None):
        wanted = decoded(weights, planes, *shape)
    with held_to(level):
        assert torch.equal(decoded(weights, planes, *shape), wanted)


@levels
@both
@pytest.mark.parametrize(
    ("shape", "rows"),
    [*pairs(SHAPES, (1, 3)), *pairs([(130, 200)], (2, 4, 5, 8, 13, 48)), *pairs([(67, 4500)], (1, 4))],
    ids=str,
)
def test_products_are_those_with_the_decoded_matrix(
    weights: Format, shape: tuple[int, int], rows: int, level: str
) -> None:
    """Also where k is no multiple of a register, n none of a block, and where inputs fill more than the first cache."""
    n, k = shape
    matrices = [encoded(weights, matrix(n, k, seed)) for seed in range(2)]
    inputs = [matrix(rows, k, seed) for seed in (5, 6)]
    with held_to(level):
        product = weights.find_product(rows, n, k)
        assert product is not None
        found = product([addresses(planes) for planes in matrices], addresses(inputs))
    for out, planes, state in zip(found, matrices, inputs, strict=True):
        assert close(out, state, decoded(weights, planes, n, k, torch.float32))


@both
def test_no_product_for_many_rows_or_without_the_compiled_half(weights: Format) -> None:
    assert weights.find_product(int8.MOST_ROWS + 1, 64, 64) is None
    with held_to(None):
        assert weights.find_product(1, 64, 64) is None


@native
@both
def test_no_bit_depends_on_the_number_of_threads(weights: Format) -> None:
    n, k = 300, 200
    matrices, state = [encoded(weights, matrix(n, k, seed)) for seed in range(3)], matrix(2, k, 9)
    product = weights.find_product(2, n, k)
    assert product is not None
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            found.append(product([addresses(planes) for planes in matrices], addresses([state] * 3)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_int4_refuses_what_it_would_not_make_smaller() -> None:
    with pytest.raises(UnsuitableShape, match="less than bfloat16"):
        Int4(32).lengths(8, 256)
    with pytest.raises(UnsuitableShape):
        encoded(Int4(32), matrix(8, 256))
