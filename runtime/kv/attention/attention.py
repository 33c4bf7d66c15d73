"""transformers' seam for attention, on paged keys and values.

Where all that a layer's queries see fits into the tier's staging memory, with what eager attention makes of it, the
module's own eager function computes it: the same bits. Otherwise it is computed where the pages are: for few rows as
``decode.py`` does it, for many in pieces, whose sums are merged by log-sum-exp before values are weighed. Only a module
whose eager function has been seen to compute just that is trusted to it.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from ....kernels.kv.blockwise import Sweeps
from ....tiering.errors import ConfigError
from ..cache.layer import SequencePages, Visible
from ..views.masks import CausalMask, causal
from ..views.paged_tensors import PagedStates
from ..views.softmax import Softmax
from .device_split import attend_split
from .eager_check import eager_of, trusted
from .few_rows import PageAttention, attend

FEW_ROWS = 16
"""Rows of queries up to which scores of all tokens are kept."""

_weights_wanted: ContextVar[bool] = ContextVar("penstock_attention_weights", default=False)


@contextlib.contextmanager
def with_weights(wanted: bool) -> Iterator[None]:
    """Whether attention gives its weights too, inside. Not all models tell their attention functions so."""
    token = _weights_wanted.set(wanted)
    try:
        yield
    finally:
        _weights_wanted.reset(token)


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
    """Attention of ``query`` [B, Hq, R, D] to ``key`` and ``value`` [B, H, T, D], as eager functions have it:
    [B, R, Hq, D], and the weights [B, Hq, R, T] in the query's dtype, if they are wanted. What no query looks at, as it
    was dropped or passed over, has the weight 0."""
    eager = eager_of(module)
    if isinstance(attention_mask, CausalMask):
        attention_mask = None
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    if isinstance(key, PagedStates) and isinstance(value, PagedStates):
        layer = key.visible.layer
        if key.expansion is not None:
            layer.look_at_all()
        small = layer.chooser is None and _eager_bytes(query, key, value) <= layer.tier.staging
        if not small and trusted(module, eager, query, key, value, scaling, options):
            weights = query.new_zeros(*query.shape[:3], key.shape[2]) if _weights_wanted.get() else None
            out = torch.stack([*_in_pages(query, key, attention_mask, Softmax.of(scaling, options), weights)])
            return out.transpose(1, 2).contiguous(), weights
        if layer.chooser is not None and layer.chooser.drops:
            raise ConfigError(
                f"{type(module).__name__} has attention of its own kind, which needs all keys and values; take [kv] "
                'attention = "exact"'
            )
        key, value = key.visible.gathered(key.expansion)
    mask = _additive(attention_mask, query, key)
    return eager(module, query, key, value, mask, scaling=scaling, dropout=dropout, **options)


def _in_pages(
    query: torch.Tensor,
    key: PagedStates,
    mask: torch.Tensor | None,
    softmax: Softmax,
    weights: torch.Tensor | None,
) -> Iterator[torch.Tensor]:
    """For each sequence, [Hq, R, D]; ``weights`` [B, Hq, R, T], zeros, are filled."""
    visible = key.visible
    few = visible.new is None and key.expansion is None and query.shape[2] <= FEW_ROWS
    masks = [
        None if mask is None else mask[min(number, len(mask) - 1)][..., : key.shape[2]]
        for number in range(len(visible.rows))
    ]
    if few:
        written = [_additive(None if here is None else here[None], query, key) for here in masks]
        biases = [None if bias is None else bias[0] for bias in written]
        if (upper := visible.layer.tier.upper) is not None:
            yield from attend_split(visible, upper, query, softmax, biases, weights)
            return
    for number, row in enumerate(visible.rows):
        own = query[number].contiguous()
        kept = None if weights is None else weights[number]
        if few:
            yield attend(PageAttention(visible, row, own, softmax, biases[number]), number, visible.layer.chooser, kept)
        else:
            yield _many(visible, number, row, own, key, masks[number], softmax, kept)


def _many(
    visible: Visible,
    number: int,
    row: SequencePages,
    query: torch.Tensor,
    key: PagedStates,
    mask: torch.Tensor | None,
    softmax: Softmax,
    weights: torch.Tensor | None,
) -> torch.Tensor:
    chooser = visible.layer.chooser
    watched = 0 if chooser is None else chooser.watched(query.shape[1])
    masses = torch.zeros(visible.length, device=query.device) if watched else None
    sweeps = Sweeps(query, softmax.scaling, softcap=softmax.softcap, sinks=softmax.sinks, watched=watched)
    first_query = visible.length - query.shape[1]
    alone = not visible.paged
    for sweep in range(sweeps.first, 3):
        for at, keys, values in _pieces(visible, number, row):
            if key.expansion is not None:
                keys, values = (x[0] for x in key.expansion(keys[None], values[None]))
            span = slice(at, at + keys.shape[1])
            part, counted, kept = (None if x is None else x[..., span] for x in (mask, masses, weights))
            offset = first_query - at
            sweeps.look(sweep, keys, values, offset=offset, mask=part, alone=alone, masses=counted, weights=kept)
    if chooser is not None:
        last = None if mask is None else mask[0, -1].cpu()
        chooser.on_prefill(visible.layer, number, query.shape[1], None if masses is None else masses.cpu(), last)
    return sweeps.result()


def _pieces(visible: Visible, number: int, row: SequencePages) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Keys and values [H, n, D] of what is visible of sequence ``number``, a stretch of pages at a time, what is new as
    a whole, each with the number of its first visible token."""
    layer = visible.layer
    tokens = layer.shapes[0].tokens
    each = sum(shape.heads * shape.dim * shape.dtype.itemsize for shape in layer.shapes)
    room = max(tokens, layer.tier.staging // 4 // each // tokens * tokens)
    for start, end in layer.kept(row, visible.start, visible.start + visible.paged):
        while start < end:
            stop = min(end, (start + room) // tokens * tokens)
            keys, values = layer.gathered(row, start, stop - start)
            yield start - visible.start, keys, values
            start = stop
    if visible.new is not None:
        yield visible.paged, visible.new[0][number], visible.new[1][number]


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
    return None if rows == 1 else causal(rows, tokens, query.dtype, query.device)
