"""Attention piece by piece: the whole softmax, whatever the pieces."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.llama import modeling_llama

from penstock.kernels.kv.pieces import SCRATCH, Partial, Visible, attend, merge

from .kv_pages import random

SCALING = 0.3


def truth(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: torch.Tensor,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result [Hq, R, Dv] and the logarithms of the sums [Hq, R], float64. ``seen`` is bool [R, T]."""
    groups = len(query) // len(keys)
    keys, values = (states.double().repeat_interleave(groups, 0) for states in (keys, values))
    scores = (query.double() @ keys.mT * SCALING).masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None, None].expand(*scores.shape[:2], 1)], 2)
    weights = torch.softmax(scores, 2).nan_to_num(0)
    return weights[..., : keys.shape[1]] @ values, scores.logsumexp(2)


def states(heads: int, groups: int, rows: int, dim: int, tokens: int, dtype: torch.dtype, seed: int) -> list[Any]:
    shapes = [(heads * groups, rows, dim), (heads, tokens, dim), (heads, tokens, dim + 3)]
    return [random(*shape, dtype=dtype, seed=seed + i) for i, shape in enumerate(shapes)]


def in_pieces(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    cuts: list[int],
    position: int | None = None,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
    scratch: int = SCRATCH,
) -> Partial:
    partial = Partial(*query.shape[:2], values.shape[2], sinks)
    for first, last in zip([0, *cuts], [*cuts, keys.shape[1]], strict=True):
        visible = Visible(None if position is None else position - first, window)
        part = slice(first, last)
        attend(query, keys[:, part], values[:, part], SCALING, partial, visible=visible, scratch=scratch)
    return partial


shapes = st.tuples(
    st.integers(1, 3),  # heads
    st.integers(1, 3),  # query heads of each
    st.integers(1, 20),  # rows
    st.integers(1, 20),  # dim
    st.integers(1, 70),  # tokens
)
cuts = st.lists(st.integers(0, 70), max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    shapes,
    cuts,
    st.none() | st.integers(-10, 80),
    st.none() | st.integers(1, 90),
    st.booleans(),
    st.sampled_from([1, 500, 5000, SCRATCH]),
    st.integers(0, 1 << 20),
)
def test_any_pieces_give_the_whole(
    shape: tuple[int, int, int, int, int],
    cuts: list[int],
    position: int | None,
    window: int | None,
    sunk: bool,
    scratch: int,
    seed: int,
) -> None:
    """Rows that see nothing included, and rows whose tokens come behind all keys or before them."""
    heads, groups, rows, _, tokens = shape
    query, keys, values = states(*shape, torch.float32, seed)
    sinks = random(heads * groups, dtype=torch.float32, seed=seed + 9) if sunk else None
    row, token = torch.arange(rows)[:, None] + (position or 0), torch.arange(tokens)
    seen = torch.ones(rows, tokens, dtype=torch.bool)
    if position is not None:
        seen = (token <= row) & (token > row - (window or 1000))
    partial = in_pieces(
        *(query, keys, values),
        cuts=sorted(min(cut, tokens) for cut in cuts),
        position=position,
        window=window,
        sinks=sinks,
        scratch=scratch,
    )
    result, logsumexp = truth(query, keys, values, seen, sinks)
    torch.testing.assert_close(partial.result(torch.float32).double(), result, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(partial.logsumexp.double(), logsumexp, rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(shapes, cuts, st.integers(-10, 80), st.booleans(), st.integers(0, 1 << 20))
def test_partials_of_other_places_are_merged(
    shape: tuple[int, int, int, int, int], cuts: list[int], position: int, sunk: bool, seed: int
) -> None:
    heads, groups, rows, dim, tokens = shape
    query, keys, values = states(*shape, torch.float32, seed)
    sinks = random(heads * groups, dtype=torch.float32, seed=seed + 9) if sunk else None
    whole = in_pieces(query, keys, values, cuts=[], position=position, sinks=sinks)
    ends = sorted(min(cut, tokens) for cut in cuts)
    partials = []
    for first, last in zip([0, *ends], [*ends, tokens], strict=True):
        partials.append(Partial(heads * groups, rows, dim + 3, sinks if first == last == 0 or not partials else None))
        visible = Visible(position - first)
        attend(query, keys[:, first:last], values[:, first:last], SCALING, partials[-1], visible=visible)
    merged = merge(partials)
    torch.testing.assert_close(merged.result(torch.float32), whole.result(torch.float32), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merged.logsumexp, whole.logsumexp, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_head", [False, True])
def test_masks_hide_and_add(per_head: bool) -> None:
    query, keys, values = states(2, 2, 6, 16, 40, torch.float32, 0)
    seen = random(4 if per_head else 1, 6, 40, dtype=torch.float32, seed=5) > 0
    found = []
    for mask in (seen, torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)):
        partial = Partial(4, 6, 19)
        attend(query, keys, values, SCALING, partial, mask=mask, scratch=2000)
        found.append(partial.result(torch.float32).double())
    wanted, _ = truth(query, keys, values, seen)
    for result in found:
        torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5)


def test_what_no_row_sees_is_not_looked_at() -> None:
    query, keys, values = states(2, 2, 8, 16, 4000, torch.float32, 0)
    wanted = in_pieces(query, keys, values, cuts=[], position=2000, window=300).result(torch.float32)
    for hidden in (slice(0, 1701), slice(2008, 4000)):
        keys[:, hidden] = values[:, hidden] = torch.nan
    assert torch.equal(in_pieces(query, keys, values, cuts=[], position=2000, window=300).result(torch.float32), wanted)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operation made."""

    size = 0

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.size = max(self.size, out.numel() * out.itemsize)
        return out


@pytest.mark.parametrize("scratch", [100_000, 1_000_000])
def test_scores_keep_within_the_scratch(scratch: int) -> None:
    query, keys, values = states(2, 4, 300, 4, 3000, torch.bfloat16, 0)
    partial = Partial(8, 300, 7)
    with Largest() as largest:
        attend(query, keys, values, SCALING, partial, visible=Visible(2700), scratch=scratch)
    assert scratch / 10 < largest.size < scratch / 2


EAGER: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (modeling_llama, {}),
    "gemma2": (modeling_gemma2, {"softcap": 3.0}),
    "gpt_oss": (modeling_gpt_oss, {}),
}


@pytest.mark.parametrize("family", EAGER)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)], ids=str)
def test_it_is_transformers_attention(family: str, dtype: torch.dtype, error: float) -> None:
    """With a softcap and with sinks too; each half of the prompt after the other."""
    modeling, options = EAGER[family]
    query, keys, values = states(2, 4, 50, 32, 200, dtype, 0)
    sinks = random(8, dtype=dtype, seed=7) if family == "gpt_oss" else None
    hidden = torch.arange(200) > torch.arange(50)[:, None] + 150
    mask = torch.zeros(50, 200, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)
    module = SimpleNamespace(num_key_value_groups=4, training=False, sinks=sinks)
    wanted, _ = modeling.eager_attention_forward(
        *(module, query[None], keys[None], values[None]), attention_mask=mask, scaling=SCALING, **options
    )
    partial = Partial(8, 50, 35, sinks)
    for first in (0, 100):
        some = slice(first, first + 100)
        attend(query, keys[:, some], values[:, some], SCALING, partial, visible=Visible(150 - first), **options)
    off = (partial.result(dtype) - wanted[0].transpose(0, 1)).float()
    assert off.norm() <= error * wanted.float().norm()


def test_few_numbers_are_more_than_one_step_from_the_truth() -> None:
    """Of bfloat16, given the scores that are rounded as transformers rounds them."""
    query, keys, values = states(2, 4, 40, 64, 2000, torch.bfloat16, 0)
    result = in_pieces(query, keys, values, cuts=[500, 1000]).result(torch.bfloat16)
    scores = (torch.bmm(query.view(2, -1, 64), keys.mT).view(8, 40, 2000) * SCALING).double()
    wanted = torch.softmax(scores, 2) @ values.double().repeat_interleave(4, 0)
    step = 2 ** (wanted.abs().log2().floor() - 7)
    assert float(((result.double() - wanted).abs() > step).double().mean()) < 0.001
