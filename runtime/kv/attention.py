"""transformers' seam for attention, on paged keys and values.

Where all that a layer's queries see fits into the tier's staging memory, with what eager attention makes of it, the
module's own eager function computes it: the same bits. Otherwise it is computed page by page where the pages are:

- Few rows: scores of all keys, a softmax over the whole row, then the values: what eager computes, with the same
  roundings, in another order of float32 sums.
- Many rows: in pieces, whose sums are merged by log-sum-exp before values are weighed.

Only a module whose eager function has been seen to compute just that (a trial on small numbers) is trusted to it.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ...kernels.kv.sweeps import Sweeps
from .layer import Row, Visible
from .masks import CausalMask, causal
from .states import PagedStates

FEW_ROWS = 16
"""Rows of queries up to which scores of all tokens are kept."""

Eager = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


def paged_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of ``query`` [B, Hq, R, D] to ``key`` and ``value`` [B, H, T, D]; [B, R, Hq, D], as eager functions
    have it. ``attention_mask`` is None where all see all that comes before them."""
    eager = eager_of(module)
    if isinstance(attention_mask, CausalMask):
        attention_mask = None
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    if isinstance(key, PagedStates) and isinstance(value, PagedStates):
        tier = key.visible.layer.tier
        large = _eager_bytes(query, key, value) > tier.staging
        if large and trusted(module, eager, query, key, value, scaling, options):
            out = torch.stack([*_in_pages(query, key, attention_mask, scaling, _Shape.of(options))])
            return out.transpose(1, 2).contiguous(), None
        key, value = key.visible.gathered(key.expansion)
    mask = _additive(attention_mask, query, key)
    return eager(module, query, key, value, mask, scaling=scaling, dropout=dropout, **options)


def eager_of(module: nn.Module) -> Eager:
    """The eager function of the file that ``module`` is from."""
    for base in type(module).__mro__:
        found: Eager | None = getattr(sys.modules[base.__module__], "eager_attention_forward", None)
        if found is not None:
            return found
    fallback: Eager = sdpa_attention_forward
    return fallback


# --- on pages -------------------------------------------------------------------------------------------------------


class _Shape:
    """What changes scores and their softmax besides numbers and mask."""

    def __init__(self, softcap: float | None, sinks: torch.Tensor | None) -> None:
        self.softcap, self.sinks = softcap, sinks

    @classmethod
    def of(cls, options: dict[str, Any]) -> "_Shape":
        return cls(options.get("softcap"), options.get("s_aux"))


def _in_pages(
    query: torch.Tensor, key: PagedStates, mask: torch.Tensor | None, scaling: float, shape: _Shape
) -> Iterator[torch.Tensor]:
    """For each sequence, [Hq, R, D]."""
    visible = key.visible
    few = visible.new is None and key.expansion is None and query.shape[2] <= FEW_ROWS
    for number, row in enumerate(visible.rows):
        here = None if mask is None else mask[min(number, len(mask) - 1)]
        compute = _few if few else _many
        yield compute(visible, number, row, query[number].contiguous(), key, here, scaling, shape)


def _few(
    visible: Visible,
    number: int,
    row: Row,
    query: torch.Tensor,
    key: PagedStates,
    mask: torch.Tensor | None,
    scaling: float,
    shape: _Shape,
) -> torch.Tensor:
    layer = visible.layer
    heads, rows, _ = query.shape
    keys, values = layer.shapes
    origin = visible.start // keys.tokens  # number of the first page
    skip = visible.start - origin * keys.tokens
    whole = torch.empty(heads, rows, skip + visible.paged, dtype=torch.float32)
    address = layer.tier.pool.address
    for at, run in layer.pieces(row.keys, visible.start, visible.paged):
        place = (row.keys.first + at - origin) * keys.tokens
        format: Any = run[0].format
        format.scores(query, [address(page) for page in run], keys, scaling, whole, place)
    scores = whole[..., skip:].to(query.dtype)
    if shape.softcap is not None:
        scores = torch.tanh(scores / shape.softcap) * shape.softcap
    bias = _additive(mask if mask is None else mask[None], query[None], key)
    probabilities = _softmax(scores if bias is None else scores + bias[0], shape.sinks)
    weights = functional.pad(probabilities, (skip, 0)) if skip else probabilities.contiguous()
    out = torch.zeros(heads, rows, values.dim, dtype=torch.float32)
    for at, run in layer.pieces(row.values, visible.start, visible.paged, in_order=True):
        place = (row.values.first + at - origin) * values.tokens
        format = run[0].format
        format.weigh(weights, place, [address(page) for page in run], values, out)
    return out.to(query.dtype)


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """As eager functions take it, of [Hq, R, T]: with ``sinks`` [Hq], one more score in each row."""
    if sinks is None:
        return functional.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
    combined = torch.cat([scores, sinks.reshape(-1, 1, 1).expand(-1, scores.shape[1], -1)], dim=-1)
    combined = combined - combined.max(dim=-1, keepdim=True).values
    return functional.softmax(combined, dim=-1, dtype=combined.dtype)[..., :-1]


def _many(
    visible: Visible,
    number: int,
    row: Row,
    query: torch.Tensor,
    key: PagedStates,
    mask: torch.Tensor | None,
    scaling: float,
    shape: _Shape,
) -> torch.Tensor:
    sweeps = Sweeps(query, scaling, softcap=shape.softcap, sinks=shape.sinks)
    first_query = visible.length - query.shape[1]
    alone = not visible.paged
    for sweep in range(sweeps.first, 3):
        for at, keys, values in _pairs(visible, number, row):
            if key.expansion is not None:
                keys, values = (x[0] for x in key.expansion(keys[None], values[None]))
            part = None if mask is None else mask[..., at : at + keys.shape[1]]
            sweeps.look(sweep, keys, values, offset=first_query - at, mask=part, alone=alone)
    return sweeps.result()


def _pairs(visible: Visible, number: int, row: Row) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Keys and values [H, n, D] of what is visible of sequence ``number``, a stretch of pages at a time, what is new as
    a whole, each with the number of its first visible token."""
    layer = visible.layer
    tokens = layer.shapes[0].tokens
    room = max(tokens, layer.tier.staging // 4 // _token_bytes(layer) // tokens * tokens)
    start, end = visible.start, visible.start + visible.paged
    while start < end:
        stop = min(end, (start + room) // tokens * tokens)
        keys, values = layer.copied(row, start, stop - start)
        yield start - visible.start, keys, values
        start = stop
    if visible.new is not None:
        yield visible.paged, visible.new[0][number], visible.new[1][number]


def _token_bytes(layer: Any) -> int:
    return sum(shape.heads * shape.dim * shape.dtype.itemsize for shape in layer.shapes)


def _eager_bytes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    """Bytes that gathered keys and values take, with what eager attention makes of them."""
    batch, heads, rows, _ = query.shape
    tokens = key.shape[2]
    gathered = sum(x.shape[1] * x.shape[3] for x in (key, value)) * tokens * key.itemsize
    repeated = heads * tokens * (key.shape[3] + value.shape[3]) * key.itemsize
    scores = heads * rows * tokens * (4 + 3 * key.itemsize)
    return int(batch * (gathered + repeated + scores))


def _additive(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """``mask``, as eager functions take it; for None, the causal one of the last tokens."""
    rows, tokens = query.shape[2], key.shape[2]
    if mask is not None:
        return mask[..., :tokens]
    return None if rows == 1 else causal(rows, tokens, query.dtype)


# --- trust ----------------------------------------------------------------------------------------------------------

_TRIAL_ROWS, _TRIAL_TOKENS = 3, 11
_trusted: dict[tuple[Any, ...], bool] = {}


def trusted(
    module: nn.Module,
    eager: Eager,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    options: dict[str, Any],
) -> bool:
    """Whether ``eager`` is known to compute what is computed here, with such ``options``: tried once for each kind."""
    kind = (type(module), eager, key.shape[1], key.shape[3], value.shape[3], query.dtype, *sorted(options))
    if kind not in _trusted:
        _trusted[kind] = _try(module, eager, query, key, value, scaling, options)
    return _trusted[kind]


def _try(
    module: nn.Module,
    eager: Eager,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    options: dict[str, Any],
) -> bool:
    chance = torch.Generator().manual_seed(0)

    def numbers(heads: int, tokens: int, dim: int) -> torch.Tensor:
        return torch.randn(1, heads, tokens, dim, generator=chance).to(query.dtype)

    q = numbers(query.shape[1], _TRIAL_ROWS, query.shape[3]) * 2
    k, v = (numbers(x.shape[1], _TRIAL_TOKENS, x.shape[3]) for x in (key, value))
    mask = _additive(None, q, k)
    try:
        expected = eager(module, q, k, v, mask, scaling=scaling, dropout=0.0, **options)[0]
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return False
    shape = _Shape.of(options)
    sweeps = Sweeps(q[0], scaling, softcap=shape.softcap, sinks=shape.sinks)
    for sweep in range(sweeps.first, 3):
        sweeps.look(sweep, k[0], v[0], offset=_TRIAL_TOKENS - _TRIAL_ROWS)
    found = sweeps.result().transpose(0, 1)[None]
    near = 1e-5 if query.dtype == torch.float32 else 2e-2
    return found.shape == expected.shape and torch.allclose(found.float(), expected.float(), rtol=near, atol=near)
