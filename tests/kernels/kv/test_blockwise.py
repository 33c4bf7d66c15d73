"""Attention in sweeps over pieces: the whole softmax, with eager attention's roundings, whatever the pieces."""

from collections.abc import Callable, Sequence
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

from penstock.kernels.kv import blockwise
from penstock.kernels.kv.blockwise import BlockwiseAttention
from tests.support.kv_pages import random

SCALING = 0.3
SCRATCH = blockwise.SCRATCH


def states(heads: int, groups: int, rows: int, dim: int, tokens: int, dtype: torch.dtype, seed: int) -> list[Any]:
    shapes = [(heads * groups, rows, dim), (heads, tokens, dim), (heads, tokens, dim + 3)]
    return [random(*shape, dtype=dtype, seed=seed + i) for i, shape in enumerate(shapes)]


def swept(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cuts: Sequence[int] = (),
    *,
    mask: torch.Tensor | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Of the last tokens, with pieces that end at ``cuts``, which are shown last to first."""
    made = BlockwiseAttention(query, SCALING, softcap=softcap, sinks=sinks)
    tokens = keys.shape[1]
    ends = sorted({min(cut, tokens) for cut in cuts} - {0, tokens})
    pieces = [*zip([0, *ends], [*ends, tokens], strict=True)]
    for sweep in range(made.first, 3):
        for first, last in reversed(pieces):
            made.add(
                *(sweep, keys[:, first:last], values[:, first:last]),
                offset=tokens - query.shape[1] - first,
                mask=None if mask is None else mask[..., first:last],
                alone=len(pieces) == 1,
            )
    return made.finish()


def truth(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, sinks: torch.Tensor | None = None
) -> torch.Tensor:
    """[Hq, R, Dv] in float64."""
    groups = len(query) // len(keys)
    keys, values = (numbers.double().repeat_interleave(groups, 0) for numbers in (keys, values))
    scores = query.double() @ keys.mT * SCALING + bias.double()
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None, None].expand(*scores.shape[:2], 1)], 2)
    return torch.softmax(scores, 2)[..., : keys.shape[1]] @ values


def causal(rows: int, tokens: int, dtype: torch.dtype) -> torch.Tensor:
    """[1, R, T]: added to the scores of the last tokens."""
    hidden = torch.ones(1, rows, tokens, dtype=torch.bool).triu(tokens - rows + 1)
    return torch.zeros(1, rows, tokens, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)


@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 50),
    st.lists(st.integers(1, 70), max_size=4),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 2000, 20_000, SCRATCH]),
    st.integers(1, 80),
    st.integers(0, 1 << 20),
)
def test_any_pieces_give_the_whole(
    heads: int,
    groups: int,
    rows: int,
    before: int,
    cuts: list[int],
    sunk: bool,
    masked: bool,
    scratch: int,
    columns: int,
    seed: int,
) -> None:
    tokens = rows + before
    query, keys, values = states(heads, groups, rows, 12, tokens, torch.float32, seed)
    sinks = random(heads * groups, dtype=torch.float32, seed=seed + 9) if sunk else None
    bias = causal(rows, tokens, torch.float32)
    if masked:
        bias = bias.masked_fill(random(1, rows, tokens, dtype=torch.float32, seed=seed + 8) > 1, -3.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "SCRATCH", scratch)
        patch.setattr(blockwise, "COLUMNS", columns)
        found = swept(query, keys, values, cuts, mask=bias if masked else None, sinks=sinks)
    torch.testing.assert_close(found.double(), truth(query, keys, values, bias, sinks), rtol=1e-5, atol=1e-5)


def test_a_row_that_sees_nothing_gets_numbers() -> None:
    """Those of padding to the left: eager attention gives them a mean."""
    query, keys, values = states(2, 2, 6, 16, 40, torch.float32, 0)
    mask = torch.full((1, 6, 40), torch.finfo(torch.float32).min)
    found = swept(query, keys, values, [7, 20], mask=mask)
    wanted = values.mean(1, keepdim=True).repeat_interleave(2, 0).expand_as(found)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_masks_may_differ_from_head_to_head() -> None:
    query, keys, values = states(2, 2, 6, 16, 40, torch.float32, 0)
    mask = random(4, 6, 40, dtype=torch.float32, seed=5)
    found = swept(query, keys, values, [7, 20], mask=mask)
    torch.testing.assert_close(found.double(), truth(query, keys, values, mask), rtol=1e-5, atol=1e-5)


class Made(TorchDispatchMode):
    """What operations make: bytes of the largest tensor, and how many numbers products have."""

    largest = 0
    products = 0

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel() * out.itemsize)
            if function is torch.ops.aten.bmm.default:
                self.products += out.numel()
        return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_scores_keep_within_the_scratch(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(blockwise, "SCRATCH", 400_000)
    query, keys, values = states(2, 4, 300, 4, 3000, dtype, 0)
    with Made() as made:
        swept(query, keys, values)
    assert 400_000 / 10 < made.largest < 400_000 / 2


def test_what_no_row_sees_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a prompt, nearly half."""
    monkeypatch.setattr(blockwise, "SCRATCH", 100_000)
    monkeypatch.setattr(blockwise, "COLUMNS", 50)
    query, keys, values = states(1, 1, 600, 1, 600, torch.float32, 0)
    with Made() as made:
        swept(query, keys, values)
    assert 600 * 600 < made.products < 1.3 * 600 * 600, "two sweeps over half of the scores"


def test_tokens_after_the_last_row_are_not_looked_at() -> None:
    query, keys, values = states(2, 2, 8, 16, 200, torch.float32, 0)
    made = []
    for tail in (0.0, torch.nan):
        keys[:, 100:] = values[:, 100:] = tail
        sweep = BlockwiseAttention(query, SCALING)
        for number in (1, 2):
            sweep.add(number, keys, values, offset=92)
        made.append(sweep.finish())
    assert torch.equal(*made)
    assert bool(made[0].isfinite().all())


EAGER: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (modeling_llama, {}),
    "gemma2": (modeling_gemma2, {"softcap": 3.0}),
    "gpt_oss": (modeling_gpt_oss, {}),
}


@pytest.mark.parametrize("pieces", [[], [64, 128]], ids=["whole", "pieces"])
@pytest.mark.parametrize("written", [True, False], ids=["mask", "causal"])
@pytest.mark.parametrize("family", EAGER)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-11)], ids=str)
def test_it_is_transformers_attention(
    family: str, dtype: torch.dtype, near: float, written: bool, pieces: list[int]
) -> None:
    """With its roundings: what is left is a last place of a few numbers, where float32 sums have another order."""
    modeling, options = EAGER[family]
    query, keys, values = states(2, 4, 50, 32, 200, dtype, 0)
    sinks = random(8, dtype=dtype, seed=7) if family == "gpt_oss" else None
    mask = causal(50, 200, dtype)
    module = SimpleNamespace(num_key_value_groups=4, training=False, sinks=sinks)
    wanted, _ = modeling.eager_attention_forward(
        *(module, query[None], keys[None], values[None]), attention_mask=mask[None], scaling=SCALING, **options
    )
    found = swept(query, keys, values, pieces, mask=mask if written else None, sinks=sinks, **options)
    off = (found - wanted[0].transpose(0, 1)).float()
    assert off.norm() <= near * wanted.float().norm()
