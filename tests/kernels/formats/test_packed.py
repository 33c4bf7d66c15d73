"""int8 and int4: torch's kernels read the same bytes, and the portable way gives what the compiled one does."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from penstock.kernels.formats import int4, int8
from penstock.kernels.formats.base import Format, UnsuitableShape
from penstock.kernels.formats.int4 import Int4
from penstock.kernels.formats.int8 import Int8, view_parts
from penstock.kernels.native import PACKED
from tests.kernels.formats.test_contract import SHAPES, addresses, decoded, encoded, matrix

BOTH = [Int8(), Int4(32), Int4(64), Int4(128)]
both = pytest.mark.parametrize("weights", BOTH, ids=[weights.name for weights in BOTH])
native = pytest.mark.skipif(PACKED is None, reason="no compiler at installation, or not the processor's instructions")


@pytest.fixture
def portable(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No compiled half."""
    with monkeypatch.context() as patch:
        patch.setattr(int8, "PACKED", None)
        patch.setattr(int4, "PACKED", None)
        yield patch


def close(found: torch.Tensor, state: torch.Tensor, numbers: torch.Tensor) -> bool:
    wanted = functional.linear(state.double(), numbers.double())
    sizes = functional.linear(state.double().abs(), numbers.double().abs())
    return bool(((found.double() - wanted).abs() <= 2**-8 * wanted.abs() + 1e-5 * sizes).all())


@pytest.mark.parametrize("shape", [(n, k) for n, k in SHAPES if k % int8.TORCH_STEP == 0], ids=str)
def test_torch_reads_int8_where_it_lies(shape: tuple[int, int]) -> None:
    n, k = shape
    (plane,) = encoded(Int8(), matrix(n, k))
    state = matrix(3, k, 1)
    numbers = decoded(Int8(), [plane], n, k, torch.float32)
    assert close(torch._weight_int8pack_mm(state, *view_parts(plane, n, k)), state, numbers)


@pytest.mark.skipif(not int4.torch_reads_this(), reason="torch packs otherwise on this processor")
@pytest.mark.parametrize("group", [32, 64, 128])
def test_torch_reads_int4_where_it_lies(group: int) -> None:
    n, k = 192, 256
    weights = Int4(group)
    (plane,) = encoded(weights, matrix(n, k))
    packed, scales_and_zeros = weights.parts(plane, n, k)
    state = matrix(3, k, 1)
    found = torch._weight_int4pack_mm_for_cpu(state, packed.view(n, k // 2), group, scales_and_zeros)
    assert close(found, state, decoded(weights, [plane], n, k, torch.float32))


@native
@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_portable_decoding_gives_the_same_bits(
    weights: Format, shape: tuple[int, int], portable: pytest.MonkeyPatch
) -> None:
    planes = encoded(weights, matrix(*shape))
    found = decoded(weights, planes, *shape)
    portable.undo()
    assert torch.equal(found, decoded(weights, planes, *shape))


@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_the_compiled_half_torch_multiplies(
    weights: Format, shape: tuple[int, int], portable: pytest.MonkeyPatch
) -> None:
    n, k = shape
    product = weights.find_product(2, n, k)
    if k % int8.TORCH_STEP if isinstance(weights, Int8) else not int4.torch_reads_this():
        assert product is None
        return
    assert product is not None
    matrices = [encoded(weights, matrix(n, k, seed)) for seed in range(2)]
    inputs = [matrix(2, k, seed) for seed in (5, 6)]
    found = product([addresses(planes) for planes in matrices], addresses(inputs))
    for out, planes, state in zip(found, matrices, inputs, strict=True):
        assert close(out, state, decoded(weights, planes, n, k, torch.float32))


@both
def test_no_product_for_many_rows(weights: Format, portable: pytest.MonkeyPatch) -> None:
    assert weights.find_product(int8.TORCH_MOST_ROWS + 1, 64, 64) is None
    portable.undo()
    assert weights.find_product(int8.MOST_ROWS + 1, 64, 64) is None


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
