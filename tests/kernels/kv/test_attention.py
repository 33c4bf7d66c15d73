"""Attention to pages by compiled code: each kind of vectors, and torch's own operations where there is none."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import repeat_kv

from penstock.kernels.kv import attention
from penstock.kernels.kv.registry import FORMATS
from penstock.kernels.native import RUNS, find_level
from tests.support.kv_pages import pages_of, random

AS_IS = FORMATS["as-is"]

levels = pytest.mark.parametrize("level", [None, *RUNS])
dtypes = st.sampled_from([torch.bfloat16, torch.float32])
shapes = st.tuples(
    st.integers(1, 3),  # heads
    st.integers(1, 9),  # query heads of each
    st.integers(1, 5),  # rows
    st.sampled_from([16, 32, 64]),  # tokens of a page
    st.integers(1, 150),  # dim
    st.integers(1, 150),  # tokens
)


@contextmanager
def at(level: str | None) -> Iterator[None]:
    """Nothing compiled, or these vectors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "KERNELS", level and find_level(level))
        yield


def whole(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Small whole numbers: float32 sums of their products are exact in any order."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def scored(level: str | None, query: torch.Tensor, keys: torch.Tensor, high: int, scaling: float) -> torch.Tensor:
    pages = pages_of(AS_IS, keys, high, keys=True)
    out = torch.full((*query.shape[:2], keys.shape[1]), torch.nan)
    with at(level):
        attention.compute_scores(query, pages.addresses, pages.shape, scaling, out, 0)
    return out


def weighed(
    level: str | None, weights: torch.Tensor, values: torch.Tensor, high: int, start: float = 0
) -> torch.Tensor:
    pages = pages_of(AS_IS, values, high, keys=False)
    out = torch.full((*weights.shape[:2], values.shape[2]), start, dtype=torch.float32)
    with at(level):
        attention.weigh(weights, 0, pages.addresses, pages.shape, out)
    return out


@levels
@settings(max_examples=60, deadline=None)
@given(shapes, dtypes, st.sampled_from([0.125, 0.3, 1.0]), st.integers(0, 1 << 20))
def test_scores_have_the_bits_of_transformers(
    level: str | None, shape: tuple[int, ...], dtype: torch.dtype, scaling: float, seed: int
) -> None:
    heads, groups, rows, high, dim, tokens = shape
    keys = whole(heads, tokens, dim, dtype=dtype, seed=seed)
    query = whole(heads * groups, rows, dim, dtype=dtype, seed=seed + 1)
    found = scored(level, query, keys, high, scaling)
    wanted = torch.matmul(query[None], repeat_kv(keys[None], groups).transpose(2, 3)) * scaling
    assert torch.equal(found, wanted[0].float())


@levels
@settings(max_examples=60, deadline=None)
@given(shapes, dtypes, st.integers(0, 1 << 20))
def test_whole_values_are_summed_exactly(
    level: str | None, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    heads, groups, rows, high, dim, tokens = shape
    values = whole(heads, tokens, dim, dtype=dtype, seed=seed)
    weights = whole(heads * groups, rows, tokens, dtype=dtype, seed=seed + 1)
    found = weighed(level, weights, values, high, start=3)
    assert torch.equal(found, 3 + weights.float() @ values.float().repeat_interleave(groups, 0))


@levels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_what_is_no_number_is_not_lost(level: str | None, dtype: torch.dtype) -> None:
    keys = random(1, 48, 40, dtype=dtype, seed=0)
    keys[0, 5, 7], keys[0, 40, 39] = torch.nan, torch.inf
    query = random(2, 1, 40, dtype=dtype, seed=1).abs()
    found = scored(level, query, keys, 16, 0.5)
    others = torch.ones(48, dtype=torch.bool)
    others[[5, 40]] = False
    assert bool(found[..., 5].isnan().all())
    assert bool((found[..., 40] == torch.inf).all())
    assert bool(found[..., others].isfinite().all())


@levels
def test_a_whole_decode_step_is_that_of_transformers(level: str | None) -> None:
    """Beside float64: no more of its numbers differ from the rounded truth than with transformers' own operations."""
    heads, groups, dim, tokens = 2, 4, 64, 700
    keys, values = (random(heads, tokens, dim, dtype=torch.bfloat16, seed=seed) for seed in (0, 1))
    query = random(heads * groups, 1, dim, dtype=torch.bfloat16, seed=2)
    weights = torch.softmax(scored(level, query, keys, 64, dim**-0.5), 2).bfloat16()
    out = weighed(level, weights, values, 64)

    repeated = [repeat_kv(states[None], groups)[0] for states in (keys, values)]
    scores = torch.matmul(query, repeated[0].transpose(1, 2)) * dim**-0.5
    eager = torch.matmul(torch.softmax(scores, -1, dtype=torch.float32).bfloat16(), repeated[1])
    truth = torch.softmax(scores.double(), -1).bfloat16().double() @ repeated[1].double()
    off = [int((some != truth.bfloat16()).sum()) for some in (out.bfloat16(), eager)]
    assert off[0] <= off[1] + truth.numel() // 100
