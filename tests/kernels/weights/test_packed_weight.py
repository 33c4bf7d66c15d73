"""Encoded weights in torch's own functions: what they give is what the decoded matrix gives, or nearly."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional

from penstock.kernels.formats.base import Format, Product
from penstock.kernels.formats.lossless import Lossless
from penstock.kernels.formats.registry import ENCODING, FORMATS
from penstock.kernels.native import KERNELS
from penstock.kernels.products import few_rows as products
from penstock.kernels.weights import packed_weight
from penstock.kernels.weights.packed_weight import PackedWeight

pytestmark = pytest.mark.levels

N, K = 300, 96


class Plain:
    """A format that is none: the numbers as they are; counts what is decoded."""

    name, exact, planes = "plain", True, 1

    def __init__(self, *, exact: bool = True) -> None:
        self.exact = exact
        self.decoded: list[int] = []
        self.asked: list[tuple[int, bool]] = []

    def lengths(self, n: int, k: int) -> tuple[int, ...]:
        return (2 * n * k,)

    def encode(
        self, slabs: Iterable[torch.Tensor], n: int, k: int, importance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        return (torch.cat(list(slabs)).view(torch.uint8).flatten(),)

    def decode(self, planes: Sequence[torch.Tensor], n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        self.decoded.append(len(out))
        out.copy_(planes[0].view(torch.bfloat16).view(n, k)[rows])

    def find_product(self, rows: int, n: int, k: int, *, biased: bool = False) -> Product | None:
        self.asked.append((rows, biased))
        return None


def chance(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).bfloat16()


def packed(matrix: torch.Tensor, format_: Any = None, **options: Any) -> PackedWeight:
    format_ = format_ or Plain()
    encoded = matrix.t().contiguous() if options.get("transposed") else matrix
    return PackedWeight(format_.encode([encoded], *encoded.shape), format_, matrix.shape, matrix.dtype, **options)


def test_it_says_what_it_is_without_being_decoded() -> None:
    plain = Plain()
    weight = packed(chance(N, K), plain, requires_grad=True)
    assert (weight.shape, weight.dtype, weight.device.type) == ((N, K), torch.bfloat16, "cpu")
    assert (weight.dim(), weight.size(1), weight.requires_grad) == (2, K, True)
    assert isinstance(weight, torch.nn.Parameter)
    assert plain.decoded == []


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_an_exact_format_is_multiplied_as_a_whole(rows: int, bias: bool) -> None:
    plain, matrix, state, added = Plain(), chance(N, K), chance(2, rows, K), chance(N) if bias else None
    assert torch.equal(functional.linear(state, packed(matrix, plain), added), functional.linear(state, matrix, added))
    assert plain.decoded == [N]


@pytest.mark.parametrize("name", [name for name, format_ in ENCODING.items() if not format_.exact])
@pytest.mark.parametrize("rows", [1, 4, 200])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_are_those_of_the_decoded_matrix(name: str, rows: int, transposed: bool) -> None:
    format_ = FORMATS[name]
    weight = packed(chance(K, N) if transposed else chance(N, K), format_, transposed=transposed)
    state, added = chance(2, rows, K), chance(N)
    decoded = weight.decoded().detach()
    product = (lambda w: state @ w) if transposed else (lambda w: functional.linear(state, w, added))
    wanted = product(decoded).float()
    assert (product(weight).float() - wanted).norm() < 0.01 * wanted.norm()
    if transposed:
        flat = state.view(-1, K)
        wanted = torch.addmm(added, flat, decoded).float()
        assert (torch.addmm(added, flat, weight).float() - wanted).norm() < 0.01 * wanted.norm()


def test_many_rows_are_multiplied_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_weight, "TILE", 128 * K * 2)
    plain, matrix, state = Plain(exact=False), chance(N, K), chance(40, K)
    out = functional.linear(state, packed(matrix, plain))
    assert plain.decoded == [128, 128, 44]
    assert torch.allclose(out.float(), functional.linear(state, matrix).float(), rtol=0.02, atol=0.1)


def test_exact_products_keep_to_what_has_the_same_bits() -> None:
    """Where torch does not fold a batch into rows, no product is asked. With a bias, only one that rounds once."""
    plain, matrix = Plain(), chance(N, K)
    sliced = chance(2, 5, K)[:, -1:]
    functional.linear(sliced, packed(matrix, plain))
    functional.linear(sliced, packed(matrix, plain, requires_grad=True), chance(N))
    functional.linear(chance(1, 1, 2, K), packed(matrix, plain), chance(N))
    assert plain.asked == []
    functional.linear(sliced, packed(matrix, plain, requires_grad=True))
    functional.linear(chance(2, K), packed(matrix, plain))
    functional.linear(chance(1, 2, K), packed(matrix, plain), chance(N))
    assert plain.asked == [(2, False), (2, False), (2, True)]


OUTPUTS = 16400
"""So many that each order of summation shows on some."""


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 33])
def test_a_transposed_exact_matrix_lies_in_memory_as_it_did(
    rows: int, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order in which torch sums may depend on that."""
    if large:
        monkeypatch.setattr(products, "_TRIAL_BYTES", 1 << 10)
        monkeypatch.setattr(packed_weight, "_kept", {})
    matrix, state, bias = chance(256, OUTPUTS), chance(rows, 256), chance(OUTPUTS)
    weight = packed(matrix, FORMATS["lossless"], transposed=True)
    assert torch.equal((state @ weight).view(torch.int16), (state @ matrix).view(torch.int16))
    found, wanted = torch.addmm(bias, state, weight), torch.addmm(bias, state, matrix)
    assert torch.equal(found.view(torch.int16), wanted.view(torch.int16))
    assert weight.decoded().stride() == matrix.stride()
    assert torch.equal(weight.decoded().view(torch.int16), matrix.view(torch.int16))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that the lossless format decodes, with matrices that are too large for a trial on another one."""
    found: list[int] = []
    decode = Lossless.decode

    def watched(self: Lossless, planes: Any, n: int, k: int, rows: slice, out: torch.Tensor) -> None:
        found.append(len(out))
        decode(self, planes, n, k, rows, out)

    monkeypatch.setattr(Lossless, "decode", watched)
    monkeypatch.setattr(products, "_TRIAL_BYTES", 1 << 10)
    monkeypatch.setattr(products, "_FOUND", {})
    monkeypatch.setattr(packed_weight, "_kept", {})
    return found


@pytest.mark.skipif(KERNELS is None, reason="no compiler at installation")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_large_exact_matrix_tells_by_itself_whether_there_is_a_product(
    rows: int, biased: bool, counted: list[int]
) -> None:
    n, k = OUTPUTS, 256
    matrix, bias = chance(n, k), chance(n) if biased else None
    weight = packed(matrix, FORMATS["lossless"])
    for number in range(4):
        state = chance(rows, k) * 2.0**-number
        found, wanted = functional.linear(state, weight, bias), functional.linear(state, matrix, bias)
        assert torch.equal(found.view(torch.int16), wanted.view(torch.int16))
    assert counted == [n], "once, to try it"
    assert len(packed_weight._scratch._buffer) == 0


def test_a_large_exact_matrix_without_a_product_is_tried_but_once(
    counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_found", lambda *_, **__: None)
    matrix, state = chance(496, 512), chance(1, 512)
    weight = packed(matrix, FORMATS["lossless"])
    for _ in range(3):
        assert torch.equal(functional.linear(state, weight), functional.linear(state, matrix))
    assert counted == [496] * (3 if KERNELS is None else 4)


def test_an_embedding_decodes_only_what_it_reads() -> None:
    plain, matrix = Plain(), chance(N, K)
    ids = torch.tensor([[3, 299, 3], [70, 64, 127]])
    assert torch.equal(functional.embedding(ids, packed(matrix, plain)), functional.embedding(ids, matrix))
    assert plain.decoded == [64, 64, N % 64]
    with pytest.raises(IndexError, match="out of range"):
        functional.embedding(torch.tensor([N]), packed(matrix, plain))


def test_any_other_use_gets_the_decoded_matrix() -> None:
    matrix = chance(N, K)
    weight = packed(matrix)
    assert torch.equal(weight.t() * 2, matrix.t() * 2)
    assert torch.equal(torch.cat([weight, matrix]), torch.cat([matrix, matrix]))
    assert torch.equal(weight @ chance(K, 3), matrix @ chance(K, 3))
    with pytest.raises(TypeError, match="in place"):
        weight.mul_(2)


@pytest.mark.parametrize("address", [0, 8, 62])
def test_decoded_numbers_lie_where_transformers_has_them(address: int) -> None:
    weight = packed(chance(N, K), address=address)
    assert weight.decoded().data_ptr() % 64 == address
    assert weight.at_hand().data_ptr() % 64 == address


def test_every_format_satisfies_the_port() -> None:
    formats: list[Format] = list(FORMATS.values())
    assert [format_.name for format_ in formats] == list(FORMATS)
