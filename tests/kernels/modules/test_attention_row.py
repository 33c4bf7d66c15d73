"""Attention of one query: bit for bit torch's, at every level, or left to torch."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from penstock.kernels.modules import attention_row
from penstock.kernels.modules.attention_row import CASES, RowAttention, attend_row, attention_is_equal, sums_are_equal
from penstock.kernels.native import RUNS, find_level

pytestmark = pytest.mark.levels
native = pytest.mark.skipif(not RUNS, reason="no compiler at installation")
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def numbers(heads: int, groups: int, tokens: int, dim: int, *, batch: int = 1, seed: int = 0) -> Tensors:
    chance = torch.Generator().manual_seed(seed)
    sizes = ((batch, heads * groups, 1, dim), (batch, heads, tokens, dim), (batch, heads, tokens, dim))
    query, key, value = (torch.randn(size, generator=chance).bfloat16() for size in sizes)
    return query, key, value


def by_torch(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    out = functional.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2)


def found(level: str, dim: int) -> RowAttention:
    kernels = find_level(level)
    assert kernels is not None
    attention = attention_row.try_kernels(dim, kernels)
    assert attention is not None, "no order has torch's bits"
    return attention


@native
@pytest.mark.parametrize("level", RUNS)
@settings(max_examples=25, deadline=None)
@given(
    heads=st.integers(1, 3),
    groups=st.integers(1, 9),
    tokens=st.integers(1, 1600),
    dim=st.sampled_from([16, 64, 80, 128, 256]),
    scaling=st.sampled_from([0.01, 0.125, 1.0, 30.0]),
    seed=st.integers(0, 1 << 20),
)
def test_equal_to_torch_in_every_bit(
    level: str, heads: int, groups: int, tokens: int, dim: int, scaling: float, seed: int
) -> None:
    query, key, value = numbers(heads, groups, tokens, dim, seed=seed)
    out = found(level, dim)(query, key, value, scaling)
    assert out is not None
    assert torch.equal(out.view(torch.int16), by_torch(query, key, value, scaling).contiguous().view(torch.int16))


@native
@pytest.mark.parametrize("level", RUNS)
def test_a_trial_shows_any_other_order(level: str) -> None:
    right = found(level, 64)
    others = [RowAttention(24 - right.lanes, right.fused, right.kernels), right._replace(fused=not right.fused)]
    for other in others:
        assert not (all(attention_is_equal(other, 64, case) for case in CASES) and sums_are_equal(other, 64))


@native
def test_room_behind_the_tokens_and_several_sequences() -> None:
    """Keys lie in memory that grows ahead of them."""
    query, key, value = numbers(2, 3, 70, 64, batch=3)
    out = attend_row(query, key[:, :, :51], value[:, :, :51], None)
    assert out is not None
    assert torch.equal(out, by_torch(query, key[:, :, :51], value[:, :, :51], 64**-0.5))


@native
def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_row, "_SHARED", 1)
    query, key, value = numbers(3, 5, 600, 64)
    out = attend_row(query, key, value, 0.2)
    assert out is not None
    assert torch.equal(out, by_torch(query, key, value, 0.2))


@native
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("token", [3, 66])
def test_scores_that_are_not_finite_are_left_to_torch(bad: float, token: int) -> None:
    query, key, value = numbers(1, 2, 70, 64)
    key[0, 0, token, 5] = bad
    assert attend_row(query, key, value, None) is None


LEFT: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Tensors]] = {
    "float32": lambda q, k, v: (q.float(), k.float(), v.float()),
    "two queries": lambda q, k, v: (q.expand(-1, -1, 2, -1), k, v),
    "other values": lambda q, k, v: (q, k, v[..., :32]),
    "an odd dimension": lambda q, k, v: (q[..., :40], k[..., :40], v[..., :40]),
    "tokens apart": lambda q, k, v: (q, k[:, :, ::2], v[:, :, ::2]),
    "numbers apart": lambda q, k, v: (q[..., ::2], k[..., ::2], v[..., ::2]),
    "no token": lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]),
    "heads that share nothing": lambda q, k, v: (q[:, :3], k, v),
    "a gradient": lambda q, k, v: (q.requires_grad_(), k, v),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_to_torch(case: str) -> None:
    assert attend_row(*LEFT[case](*numbers(2, 2, 40, 64)), None) is None


@native
def test_a_choice_of_the_user_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    given = numbers(2, 2, 40, 64)
    assert attend_row(*given, None) is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attend_row(*given, None) is None
    with sdpa_kernel(SDPBackend.MATH):
        assert attend_row(*given, None) is None
    monkeypatch.setattr(functional, "scaled_dot_product_attention", by_torch)
    assert attend_row(*given, None) is None


def test_no_kernels_no_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_row, "KERNELS", None)
    assert attend_row(*numbers(2, 2, 40, 64), None) is None
