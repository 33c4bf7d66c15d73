"""What no checksum tells of a stored matrix: its numbers."""

import pytest
import torch

from penstock.kernels.formats import deep
from penstock.kernels.formats.base import UnsuitableShape
from penstock.kernels.formats.deep import find_deep_fault
from penstock.kernels.formats.registry import ENCODING, FORMATS
from tests.kernels.formats.test_blocks import CASES, K, N
from tests.kernels.formats.test_contract import SHAPES, matrix


@pytest.mark.parametrize("name", ENCODING)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("at_once", [1, 4 << 20])
def test_what_is_encoded_is_good(
    name: str, shape: tuple[int, int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deep, "_AT_ONCE", at_once)
    try:
        planes = FORMATS[name].encode([matrix(*shape)], *shape)
    except UnsuitableShape:
        pytest.skip("a shape that the format does not take")
    for count in range(1, len(planes) + 1):
        assert find_deep_fault(name, "bfloat16", *shape, planes[:count]) is None


@pytest.mark.parametrize("name", CASES)
def test_what_checkpoints_come_in_is_good(name: str) -> None:
    plane, numbers = CASES[name](name)
    found = find_deep_fault(name, "bfloat16", N, K, [plane])
    if numbers.isfinite().all():
        assert found is None
    else:  # FP8 has a NaN, and the case has all of its numbers
        assert found == "row 0, column 127 is nan"


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0])
@pytest.mark.parametrize("at_once", [1, 4 << 20])
def test_a_scale_that_is_no_number_is_found_with_its_row(
    bits: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deep, "_AT_ONCE", at_once)
    n, k = 130, 64
    (plane,) = FORMATS["int8"].encode([matrix(n, k)], n, k)
    plane[n * k + 2 * 70 : n * k + 2 * 70 + 2] = torch.tensor([bits & 255, bits >> 8], dtype=torch.uint8)
    assert str(find_deep_fault("int8", "bfloat16", n, k, [plane])).startswith("row 70, column ")


def test_numbers_that_the_models_dtype_has_not_are_found() -> None:
    (plane,) = FORMATS["int8"].encode([matrix(64, 64) * 1e20], 64, 64)
    assert find_deep_fault("int8", "bfloat16", 64, 64, [plane]) is None
    assert "inf" in str(find_deep_fault("int8", "float16", 64, 64, [plane]))


def test_an_exact_format_may_have_any_bits() -> None:
    whole = matrix(64, 64)
    whole[3, 3] = torch.nan
    planes = FORMATS["lossless"].encode([whole], 64, 64)
    assert find_deep_fault("lossless", "bfloat16", 64, 64, planes) is None


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "length", "says"),
    [
        ("int3", "bfloat16", (64, 64), 64, "no weight format"),
        ("int8", "bfloat16", (64, 64), 64, "takes 4224 bytes"),
        ("int8", "bfloat16", (-64, 64), 64, "there is no int8 matrix"),
        ("lossless", "float32", (64, 64), 8000, "not float32"),
        ("lossless", "bfloat16", (64, 64), 8000, "rows 0 to 15 are inconsistent"),
        ("int8", "uint8", (64, 64), 4224, "not uint8"),
    ],
)
def test_what_cannot_be_decoded_is_told(name: str, dtype: str, shape: tuple[int, int], length: int, says: str) -> None:
    plane = torch.full((length,), 255, dtype=torch.uint8)
    assert says in str(find_deep_fault(name, dtype, *shape, [plane]))
