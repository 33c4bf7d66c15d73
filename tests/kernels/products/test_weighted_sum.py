"""Weighted sums: bit for bit what torch makes of them step by step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.native import KERNELS
from penstock.kernels.products.weighted_sum import add_weighted, sum_weighted

native = pytest.mark.skipif(KERNELS is None, reason="no compiler at installation")


def step_by_step(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """As transformers' eager experts do it for one token."""
    final = torch.zeros(1, rows.shape[1], dtype=rows.dtype)
    for row, weight in zip(rows, weights, strict=True):
        final.index_add_(0, torch.tensor([0]), (row[None] * weight[None, None]).to(rows.dtype))
    return final


def summed(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return sum_weighted([row.data_ptr() for row in rows], weights.tolist(), rows.shape[1])


@native
@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 9),
    st.integers(1, 70),
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.integers(-140, 120),
    st.integers(0, 1 << 20),
)
def test_equal_to_torch_in_every_bit(count: int, width: int, dtype: torch.dtype, exponent: int, seed: int) -> None:
    """At every magnitude, subnormal numbers and infinity included."""
    chance = torch.Generator().manual_seed(seed)
    rows = (torch.randn(count, width, generator=chance).double() * 2.0**exponent).bfloat16()
    weights = torch.rand(count, generator=chance).to(dtype)
    assert torch.equal(summed(rows, weights).view(torch.int16), step_by_step(rows, weights).view(torch.int16))


@native
def test_what_is_no_number_stays_none() -> None:
    rows = torch.tensor([[float("inf"), float("nan"), -0.0, 1.0], [float("-inf"), 1.0, -0.0, 2.0]]).bfloat16()
    weights = torch.tensor([0.5, 0.25])
    found, wanted = summed(rows, weights), step_by_step(rows, weights)
    assert torch.equal(found.isnan(), torch.tensor([[True, True, False, False]]))
    assert torch.equal(found.nan_to_num(7), wanted.nan_to_num(7))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 90),
    st.sampled_from([1, 40, 1024]),
    st.sampled_from([torch.bfloat16, torch.float32, torch.float16]),
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.integers(0, 1 << 20),
)
def test_experts_add_to_their_tokens_as_in_torch(
    count: int, width: int, dtype: torch.dtype, wide: torch.dtype, seed: int
) -> None:
    chance = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, generator=chance).to(wide if dtype == torch.bfloat16 else dtype)
    out = torch.randn(count, width, generator=chance).to(dtype)
    rows = torch.randperm(100, generator=chance)[:count]
    found = torch.randn(100, width, generator=chance).to(dtype)
    wanted = found.clone().index_add_(0, rows, (out * weights[:, None]).to(dtype))
    add_weighted(found, rows, out, weights)
    assert torch.equal(found, wanted)
