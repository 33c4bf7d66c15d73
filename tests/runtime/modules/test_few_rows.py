"""Products for a few rows where models multiply: taken, and the same bits as torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from penstock.kernels.native import KERNELS
from penstock.kernels.products import few_rows as kernels
from penstock.runtime.modules.few_rows import fast_weight, few_rows

native = pytest.mark.skipif(KERNELS is None, reason="no compiler at installation")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Rows, n and k of every product that was asked for and there."""
    found: list[tuple[int, int, int]] = []

    def products(rows: int, n: int, k: int, matrix: torch.Tensor | None = None) -> kernels.Products | None:
        product = kernels.find_product(rows, n, k, matrix)
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
        assert taken == [(1, 64, 512), (3, 64, 512)]
        for other in (
            lambda w: functional.linear(hidden, w, torch.ones(64).bfloat16()),
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
