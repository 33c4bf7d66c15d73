"""Transposed copies: each number where torch's copy has it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.weights.transposed import copy_transposed

pytestmark = pytest.mark.levels


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 150),
    st.integers(1, 70),
    st.integers(0, 20),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
)
def test_each_number_is_where_torch_has_it(rows: int, k: int, beside: int, dtype: torch.dtype) -> None:
    part = torch.randn(rows, k, generator=torch.Generator().manual_seed(rows)).to(dtype)
    around = torch.full((k, rows + beside), 7.0, dtype=dtype)
    copy_transposed(part, around[:, :rows])
    assert torch.equal(around[:, :rows], part.t())
    assert bool((around[:, rows:] == 7.0).all()), "what lies beside it is left"
