"""Products for a few rows where models multiply: taken, and the same bits as torch's."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from penstock.kernels.formats.registry import FORMATS
from penstock.kernels.native import KERNELS
from penstock.kernels.products import few_rows as kernels
from penstock.kernels.products.row_order import each_row_alone
from penstock.kernels.weights.packed_weight import PackedWeight
from penstock.runtime.modules.few_rows import fast_weight, few_rows

native = pytest.mark.skipif(KERNELS is None, reason="no compiler at installation")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Rows, n and k of every product that was asked for and there."""
    found: list[tuple[int, int, int]] = []

    def products(
        rows: int, n: int, k: int, matrix: torch.Tensor | None = None, **options: bool
    ) -> kernels.Products | None:
        product = kernels.find_product(rows, n, k, matrix, **options)
        if product is not None:
            found.append((rows, n, k))
        return product

    monkeypatch.setattr("penstock.runtime.modules.few_rows.find_product", products)
    return found


@native
def test_a_router_takes_the_product(taken: list[tuple[int, int, int]]) -> None:
    weight = torch.randn(64, 512).bfloat16()
    fast, plain = fast_weight(weight, True), nn.Parameter(weight)
    with torch.no_grad():
        for rows in (1, 3, 40):
            hidden = torch.randn(rows, 512).bfloat16()
            assert torch.equal(functional.linear(hidden, fast), functional.linear(hidden, plain))
            bias = torch.randn(64).bfloat16()
            assert torch.equal(functional.linear(hidden, fast, bias), functional.linear(hidden, plain, bias))
        assert taken == [(1, 64, 512)] * 2 + [(3, 64, 512)] * 2
        for other in (
            lambda w: functional.linear(hidden, w, bias=torch.ones(64).bfloat16()),
            lambda w: functional.linear(hidden.float(), w.float()),
            lambda w: hidden @ w.t(),
            lambda w: w[3] + 1,
        ):
            found = other(fast)
            assert type(found) is torch.Tensor
            assert torch.equal(found, other(plain))
    assert isinstance(fast, nn.Parameter)


@native
def test_an_output_layer_too_large_for_a_trial_is_tried_on_itself(taken: list[tuple[int, int, int]]) -> None:
    layer = nn.Linear(1024, 17_000, bias=False, dtype=torch.bfloat16)
    assert layer.weight.nbytes > kernels._TRIAL_BYTES
    forward = few_rows(layer, layer.forward)
    assert forward is not None
    with torch.no_grad():
        for _ in range(3):
            hidden = torch.randn(1, 1, 1024).bfloat16()
            assert torch.equal(forward(hidden), functional.linear(hidden, layer.weight))
    assert taken == [(1, 17_000, 1024)] * 3


@native
def test_a_weight_on_which_no_order_shows_proves_nothing(taken: list[tuple[int, int, int]]) -> None:
    layer = nn.Linear(1024, 17_001, bias=False, dtype=torch.bfloat16)
    nn.init.zeros_(layer.weight)
    forward = few_rows(layer, layer.forward)
    assert forward is not None
    with torch.no_grad():
        assert not forward(torch.randn(1, 1024).bfloat16()).any()
    assert not taken


@native
def test_a_layer_with_a_bias_takes_the_product(taken: list[tuple[int, int, int]]) -> None:
    """torch adds it before it rounds where it takes an input as rows, and after that elsewhere."""
    layer = nn.Linear(512, 96, dtype=torch.bfloat16)
    forward = few_rows(layer, layer.forward)
    assert forward is not None
    with torch.no_grad():
        hidden = torch.randn(8, 3, 512).bfloat16()
        for part in (hidden[0], hidden[:1], hidden[:4, 0].clone()):
            assert torch.equal(forward(part), functional.linear(part, layer.weight, layer.bias))
        assert taken == [(3, 96, 512), (3, 96, 512), (4, 96, 512)]
        for part in (hidden[:2, -1:], hidden[None, :1], hidden[0, 0], hidden):
            assert torch.equal(forward(part), functional.linear(part, layer.weight, layer.bias))
        layer.bias = nn.Parameter(layer.bias.float())
        with pytest.raises(RuntimeError):
            forward(hidden[0])
    assert len(taken) == 3


@native
def test_rows_with_a_bias_have_the_bits_that_each_has_alone(taken: list[tuple[int, int, int]]) -> None:
    """3072 columns: torch sums one row in another order than several."""
    layer = nn.Linear(3072, 256, dtype=torch.bfloat16)
    forward = few_rows(layer, layer.forward)
    assert forward is not None
    matrix, inputs = kernels._trial(7, 256, 3072)
    with torch.no_grad():
        layer.weight.copy_(matrix)
        layer.bias.copy_(torch.randn(256) * 1e-6)
        for hidden in inputs:
            wanted = torch.cat([functional.linear(row[None, None], layer.weight, layer.bias) for row in hidden])
            with each_row_alone():
                assert torch.equal(forward(hidden[:, None]), wanted)
    assert taken == [(4, 256, 3072), (3, 256, 3072)] * len(inputs)


@native
@pytest.mark.parametrize("packed", [False, True])
def test_a_layer_that_lies_turned_takes_the_product(packed: bool, taken: list[tuple[int, int, int]]) -> None:
    layer = Conv1D(96, 3072).bfloat16()
    nn.init.normal_(layer.bias)
    forward = few_rows(layer, partial(Conv1D.forward, layer))
    assert forward is not None
    with torch.no_grad():
        hidden = torch.randn(7, 1, 3072).bfloat16()
        parts = [hidden[:1], hidden[:3], hidden, hidden[None, :2], hidden[0, 0]]
        wanted = [Conv1D.forward(layer, part) for part in parts]
        alone = torch.cat([Conv1D.forward(layer, row) for row in torch.split(hidden, 1)])
        if packed:
            lossless = FORMATS["lossless"]
            planes = lossless.encode([layer.weight.t().contiguous()], 96, 3072)
            weight = PackedWeight(planes, lossless, (3072, 96), torch.bfloat16, transposed=True, requires_grad=True)
            layer._parameters["weight"] = weight
        assert all(torch.equal(forward(part), one) for part, one in zip(parts, wanted, strict=True))
        assert packed or taken == [(1, 96, 3072), (3, 96, 3072), (2, 96, 3072), (1, 96, 3072)]
        with each_row_alone():
            assert torch.equal(forward(hidden), alone)
    assert packed or taken[4:] == [(4, 96, 3072), (3, 96, 3072)]
