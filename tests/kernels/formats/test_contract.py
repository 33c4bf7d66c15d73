"""What every weight format keeps to."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from penstock.kernels.formats.base import SLAB, Format, UnsuitableShape
from penstock.kernels.formats.planes import locate
from penstock.kernels.formats.registry import ENCODING, FORMATS

pytestmark = pytest.mark.levels

ERRORS = {"int8": 0.008, "nested": 0.008, "stacked": 0.008, "int4-32": 0.075, "int4-64": 0.085, "int4-128": 0.095}
"""Of the weights' norm, at most, on Gaussian weights; for each format that is not exact."""

SHAPES = [(144, 256), (256, 72), (64, 128), (200, 100), (65, 333), (129, 163)]

NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False) | st.sampled_from([0.0, -0.0, 1e-30, 3e-38])

formats = pytest.mark.parametrize("weights", ENCODING.values(), ids=ENCODING)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def matrix(n: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).bfloat16()


def encoded(weights: Format, whole: torch.Tensor, high: int = SLAB) -> tuple[torch.Tensor, ...]:
    try:
        return weights.encode(iter(whole.split(high)), *whole.shape)
    except UnsuitableShape:
        pytest.skip("a shape that the format does not take")


def decoded(
    weights: Format, planes: Sequence[torch.Tensor], n: int, k: int, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    out = torch.full((n, k), torch.nan, dtype=dtype)
    weights.decode(planes, n, k, slice(0, n), out)
    return out


def addresses(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


@formats
def test_its_name_is_that_in_the_registry(weights: Format) -> None:
    assert FORMATS[weights.name] is weights


@formats
@shapes
def test_what_is_encoded_is_decoded(weights: Format, shape: tuple[int, int]) -> None:
    whole = matrix(*shape)
    found = decoded(weights, encoded(weights, whole), *shape)
    if weights.exact:
        assert torch.equal(found, whole)
    else:
        assert (found.float() - whole.float()).norm() <= ERRORS[weights.name] * whole.float().norm()


@formats
@shapes
def test_planes_have_the_lengths_that_were_said(weights: Format, shape: tuple[int, int]) -> None:
    planes = encoded(weights, matrix(*shape))
    assert len(planes) == weights.planes
    assert all(plane.dtype == torch.uint8 and plane.dim() == 1 for plane in planes)
    assert weights.lengths(*shape) in (None, tuple(len(plane) for plane in planes))


@formats
@pytest.mark.parametrize("high", [2 * SLAB, 1024])
def test_no_byte_depends_on_how_many_rows_come_at_a_time(weights: Format, high: int) -> None:
    whole = matrix(300, 100)
    for one, other in zip(encoded(weights, whole), encoded(weights, whole, high), strict=True):
        assert torch.equal(one, other)


@formats
@shapes
def test_planes_lie_in_the_room_that_is_given_whatever_was_there(weights: Format, shape: tuple[int, int]) -> None:
    whole, given = matrix(*shape), []

    def room(length: int) -> torch.Tensor:
        given.append(torch.full((length,), 0xA5, dtype=torch.uint8))
        return given[-1]

    wanted = encoded(weights, whole)
    planes = weights.encode(whole.split(SLAB), *shape, None, room)
    assert addresses(planes) == addresses(given)
    assert all(torch.equal(one, other) for one, other in zip(planes, wanted, strict=True))


@formats
@shapes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_are_decoded_as_in_the_whole(weights: Format, shape: tuple[int, int], dtype: torch.dtype) -> None:
    n, k = shape
    planes = encoded(weights, matrix(n, k).to(dtype))
    whole = decoded(weights, planes, n, k, dtype)
    for first in range(0, n, SLAB):
        for last in {min(first + SLAB, n), min(first + 7, n), n}:
            out = torch.full((last - first, k), torch.nan, dtype=dtype)
            weights.decode(planes, n, k, slice(first, last), out)
            assert torch.equal(out, whole[first:last])


@formats
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_dtypes_are_the_rounded_float32(weights: Format, dtype: torch.dtype) -> None:
    if weights.exact:
        pytest.skip("an exact format is decoded in its own dtype")
    n, k = 144, 72
    planes = encoded(weights, matrix(n, k))
    assert torch.equal(decoded(weights, planes, n, k, dtype), decoded(weights, planes, n, k, torch.float32).to(dtype))


@formats
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused_or_kept(weights: Format, bad: float) -> None:
    whole = matrix(130, 64)
    whole[129, 5] = bad
    if weights.exact:
        found = decoded(weights, encoded(weights, whole), *whole.shape)
        assert torch.equal(found.view(torch.int16), whole.view(torch.int16))
    else:
        with pytest.raises(ValueError, match=r"NaN|infinit"):
            encoded(weights, whole)


@formats
@settings(max_examples=30, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=4))
def test_rows_of_one_number_are_exact(weights: Format, numbers: list[float]) -> None:
    whole = torch.tensor(numbers).bfloat16()[:, None].expand(len(numbers), 160).contiguous()
    whole = whole.repeat(64, 1)
    assert torch.equal(decoded(weights, encoded(weights, whole), *whole.shape), whole)


@formats
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 48), st.integers(40, 200), st.integers(20, 300), st.integers(1, 4), st.integers(0, 1 << 20))
def test_products_are_those_of_the_decoded_numbers(
    weights: Format, rows: int, n: int, k: int, count: int, seed: int
) -> None:
    try:
        weights.lengths(n, k)
    except UnsuitableShape:
        return
    product = weights.find_product(rows, n, k)
    if product is None:
        return
    matrices = [encoded(weights, matrix(n, k, seed + i)) for i in range(count)]
    inputs = [matrix(rows, k, seed + 100 + i) for i in range(count)]
    found = product([locate(weights, planes, n, k) for planes in matrices], addresses(inputs))
    assert found.shape == (count, rows, n)
    assert found.dtype == torch.bfloat16
    for out, planes, state in zip(found, matrices, inputs, strict=True):
        dtype = torch.bfloat16 if weights.exact else torch.float32
        numbers = decoded(weights, planes, n, k, dtype).double()
        wanted = functional.linear(state.double(), numbers)
        sizes = functional.linear(state.double().abs(), numbers.abs())
        assert ((out.double() - wanted).abs() <= 2**-8 * wanted.abs() + 1e-5 * sizes).all()


@formats
def test_planes_may_lie_anywhere_in_a_larger_buffer(weights: Format) -> None:
    n, k = 100, 96
    planes = encoded(weights, matrix(n, k))
    moved = []
    for plane in planes:
        room = torch.full((len(plane) + 192,), 0xA5, dtype=torch.uint8)
        at = -room.data_ptr() % 64 + 64
        room[at : at + len(plane)] = plane
        moved.append(room[at : at + len(plane)])
    assert torch.equal(decoded(weights, moved, n, k), decoded(weights, planes, n, k))
    product = weights.find_product(1, n, k)
    if product is not None:
        state = matrix(1, k, 1)
        assert torch.equal(
            product([locate(weights, moved, n, k)], addresses([state])),
            product([locate(weights, planes, n, k)], addresses([state])),
        )
