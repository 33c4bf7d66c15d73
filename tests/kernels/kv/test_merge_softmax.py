"""Attention in parts: merged, they are attention to all tokens, wherever the cuts are and whatever is hidden."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.kv.merge_softmax import SoftmaxSums, weigh_values
from tests.support.kv_pages import random


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 36), max_size=4, unique=True),
    groups=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    large=st.sampled_from([1.0, 100.0]),
    hidden=st.integers(0, 37),
    sinks=st.booleans(),
)
def test_parts_merge_to_the_whole(
    cuts: list[int], groups: int, dtype: torch.dtype, large: float, hidden: int, sinks: bool
) -> None:
    """Also where one part has scores far above the others', and where the first tokens are hidden, up to all."""
    heads, rows, tokens, dim = 2, 3, 37, 8
    scores = random(heads * groups, rows, tokens, dtype=dtype, seed=1) * large
    scores[..., :hidden] = torch.finfo(dtype).min
    values = random(heads, tokens, dim, dtype=dtype, seed=2)
    more = random(heads * groups, dtype=dtype, seed=3)
    parts = [slice(a, b) for a, b in pairwise([0, *sorted(cuts), tokens])]
    sums = [SoftmaxSums.of(scores[..., part]) for part in parts]
    wanted = scores.double()
    if sinks:
        sums.append(SoftmaxSums.of_sinks(more, rows))
        wanted = torch.cat([wanted, more.double().view(-1, 1, 1).expand(-1, rows, 1)], -1)
    whole = SoftmaxSums.merge(sums)
    probabilities = torch.cat([whole.to_probabilities(scores[..., part]) for part in parts], -1)
    wanted = wanted.softmax(-1)[..., :tokens]
    assert probabilities.dtype == dtype
    near = 1e-5 if dtype == torch.float32 else 2.0**-8  # one rounding to bfloat16
    assert torch.allclose(probabilities.double(), wanted, rtol=near, atol=1e-9)
    found = sum(weigh_values(probabilities[..., part], values[:, part]) for part in parts)
    exact = torch.matmul(probabilities.double(), values.double().repeat_interleave(groups, 0))
    assert torch.allclose(torch.as_tensor(found).double(), exact, rtol=1e-5, atol=1e-6)
