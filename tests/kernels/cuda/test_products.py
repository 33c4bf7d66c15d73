"""Products on a device with matrices as they are stored."""

import pytest
import torch
from torch.nn import functional

from penstock.kernels.cuda.registry import find_device_format
from penstock.kernels.formats.int4 import Int4
from penstock.kernels.formats.int8 import view_parts
from penstock.kernels.formats.registry import FORMATS
from penstock.kernels.weights import packed_weight
from penstock.kernels.weights.packed_weight import PackedWeight
from tests.support.on_device import NAMES, assert_close, chance, decoded, integers, on_device

PRODUCTS = ["int8", "int4-32", "int4-64", "int4-128"]
SHAPES = [(147, 100), (33, 1030)]
"""The second has so many columns that several programs share a row."""


def planes_of(name: str, n: int, k: int) -> tuple[torch.Tensor, ...]:
    return FORMATS[name].encode([chance(n, k, seed=n)], n, k)


def whole_numbers(name: str, n: int, k: int) -> torch.Tensor:
    """A plane whose weights are small whole numbers."""
    (length,) = FORMATS[name].lengths(n, k) or ()
    plane = torch.zeros(length, dtype=torch.uint8)
    format_ = FORMATS[name]
    if isinstance(format_, Int4):
        numbers, scales_and_zeros = format_.parts(plane, n, k)
        numbers.copy_(integers(0, 255, *numbers.shape))
        scales_and_zeros.copy_(integers(-4, 4, *scales_and_zeros.shape, seed=1))
    else:
        numbers, scales = view_parts(plane, n, k)
        numbers.copy_(integers(-127, 127, n, k))
        scales.copy_(torch.exp2(integers(-2, 2, n, seed=1).float()))
    return plane


@on_device
@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_those_of_the_decoded_matrix(name: str, n: int, k: int, rows: int, device: str) -> None:
    kernels, planes, x = find_device_format(name), planes_of(name, n, k), chance(rows, k)
    assert kernels is not None
    out = kernels.product([plane.to(device) for plane in planes], n, k, x.to(device))
    assert out is not None
    assert_close(out, x, decoded(name, planes, n, k, torch.float32))


@on_device
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_sums_that_float32_has_are_rounded_once(name: str, n: int, k: int, device: str) -> None:
    kernels, plane, x = find_device_format(name), whole_numbers(name, n, k), integers(-8, 8, 5, k, seed=2).bfloat16()
    assert kernels is not None
    out = kernels.product([plane.to(device)], n, k, x.to(device))
    exact = x.double() @ decoded(name, [plane], n, k, torch.float32).double().T
    assert exact.abs().max() > 512  # so that some are not numbers of bfloat16
    assert out is not None
    assert torch.equal(out.cpu(), exact.bfloat16())


@on_device
@pytest.mark.filterwarnings("ignore:invalid value")
def test_infinite_and_undefined_sums_stay_so(device: str) -> None:
    kernels, plane, x = find_device_format("int8"), whole_numbers("int8", 40, 32), torch.ones(2, 32).bfloat16()
    assert kernels is not None
    x[0, 3], x[1, 5] = torch.inf, torch.nan
    out = kernels.product([plane.to(device)], 40, 32, x.to(device))
    wanted = x @ decoded("int8", [plane], 40, 32, torch.bfloat16).T
    assert wanted.isinf().any()
    assert out is not None
    assert torch.allclose(out.cpu(), wanted, rtol=0, atol=0, equal_nan=True)


@on_device
@pytest.mark.parametrize("name", NAMES)
def test_many_rows_are_not_for_these_kernels(name: str, device: str) -> None:
    kernels, planes = find_device_format(name), planes_of(name, 64, 64)
    assert kernels is not None
    there = [plane.to(device) for plane in planes]
    assert kernels.product(there, 64, 64, chance(17, 64).to(device)) is None
    assert (kernels.product(there, 64, 64, chance(16, 64).to(device)) is not None) == (name in PRODUCTS)


def packed(name: str, n: int, k: int, device: str, *, transposed: bool = False) -> PackedWeight:
    """A weight whose planes are on ``device``."""
    planes = [plane.to(device) for plane in planes_of(name, n, k)]
    shape = (k, n) if transposed else (n, k)
    weight = PackedWeight(planes, FORMATS[name], shape, torch.bfloat16, transposed=transposed)
    if device == "cpu":
        assert weight.on_device is None
        weight.on_device = find_device_format(name)
    assert weight.on_device is find_device_format(name)
    return weight


@on_device
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("name", NAMES)
def test_a_weight_on_a_device_is_used_there(
    name: str, rows: int, transposed: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, k = 83, 100
    weight, whole = (
        packed(name, n, k, device, transposed=transposed),
        decoded(name, planes_of(name, n, k), n, k, torch.bfloat16),
    )
    monkeypatch.setattr(packed_weight, "DEVICE_TILE", 64 * k * 2)
    monkeypatch.setattr(type(FORMATS[name]), "decode", None)
    monkeypatch.setattr(type(FORMATS[name]), "find_product", None)
    x = chance(1, rows, k)
    there = x.to(device)
    out = there @ weight if transposed else functional.linear(there, weight)
    assert out.shape == (1, rows, n)
    # Above a few rows, the matrix is rounded before it is multiplied by.
    rounding = 0.0 if FORMATS[name].exact else 0.01
    wanted = functional.linear(x, whole).float()
    assert (out[0].cpu().float() - wanted).norm() <= rounding * wanted.norm() + 1e-2 * (device == "cuda")
    assert torch.equal(weight.decoded().detach().cpu(), whole.t() if transposed else whole)


@on_device
@pytest.mark.parametrize("name", NAMES)
def test_an_embedding_on_a_device_reads_rows(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    n, k = 147, 100
    weight, whole = packed(name, n, k, device), decoded(name, planes_of(name, n, k), n, k, torch.bfloat16)
    monkeypatch.setattr(type(weight.on_device), "decode", None)
    ids = torch.tensor([[3, 146, 3], [70, 0, 127]])
    assert torch.equal(functional.embedding(ids.to(device), weight).cpu(), whole[ids])
    with pytest.raises(IndexError, match="out of range"):
        functional.embedding(torch.tensor([n], device=device), weight)


def test_a_format_without_kernels_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="no q8_0 weights on a CUDA device"):
        packed_weight._on_device(FORMATS["q8_0"])
