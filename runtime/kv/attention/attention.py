"""The attention function that transformers calls, for paged keys and values.

Where the visible keys and values fit into the tier's staging memory, together with what eager attention makes of them,
the module's own eager function computes attention: the same bits. Otherwise attention is computed where the pages are:
``few_rows.py`` computes it for few queries. For many queries it is computed in pieces, whose sums are merged by
log-sum-exp before values are weighed. That replaces a module's eager function only if a trial has shown that both
compute the same (``eager_check.py``).

Keys that are in no page are not ours: a module that attends to such, of an image's tower, across to an encoder, or in a
forward without a cache, computes with transformers' own function.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from ....kernels.kv.blockwise import BlockwiseAttention
from ....tiering.errors import ConfigError
from ..views.masks import CausalMask, make_additive, make_causal_mask
from ..views.page_attention import PageAttention
from ..views.paged_tensors import PagedTensor
from ..views.sequence import SequencePages
from ..views.softmax import Softmax
from ..views.visible import Visible
from .device_split import attend_split
from .eager_check import find_eager, find_sdpa, matches_eager
from .few_rows import attend

FEW_ROWS = 16
"""The most queries for which the scores of all tokens are kept."""

_weights_wanted: ContextVar[bool] = ContextVar("penstock_attention_weights", default=False)


@contextlib.contextmanager
def with_weights(wanted: bool) -> Iterator[None]:
    """Inside, attention returns its weights too, if ``wanted``. Not all models pass that on to their attention
    function."""
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
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of ``query`` [B, Hq, R, D] to ``key`` and ``value`` [B, H, T, D], as eager functions return it:
    [B, R, Hq, D], and the weights [B, Hq, R, T] in the query's dtype, if they are wanted. Tokens that were dropped or
    not selected have the weight 0. Keys and values that are not paged go to transformers' sdpa function. Raises
    ConfigError where a module needs tokens that were dropped, and what the pool raises."""
    if not (isinstance(key, PagedTensor) and isinstance(value, PagedTensor)):
        # A causal mask that is not left out is written out by the function itself.
        return find_sdpa(module)(module, query, key, value, _as_given(attention_mask, query, key), **options)
    given = _as_given(attention_mask, query, key)
    if given is None and query.shape[2] > 1 and not _is_causal(module, options):
        attention_mask = _see_all(query, key)
    return _attend(module, query, key, value, attention_mask, **options)


def paged_eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As ``paged_attention``, for models whose own attention is eager: without a mask, all tokens see each other."""
    if not (isinstance(key, PagedTensor) and isinstance(value, PagedTensor)):
        return find_eager(module)(module, query, key, value, attention_mask, **options)
    if attention_mask is None and query.shape[2] > 1:
        attention_mask = _see_all(query, key)
    elif attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = attention_mask.to(query.dtype)  # eager functions add it to the scores, as 0 and 1
    return _attend(module, query, key, value, attention_mask, **options)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: PagedTensor,
    value: PagedTensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Without a mask, each token sees those up to itself."""
    eager = find_eager(module)
    if isinstance(attention_mask, CausalMask):
        attention_mask = None
    elif attention_mask is not None:
        attention_mask = make_additive(attention_mask, query.dtype)
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    layer = key.visible.layer
    if key.expansion is not None:
        layer.read_all_pages()
    small = layer.selector is None and _count_eager_bytes(query, key, value) <= layer.staging
    if not small and not dropout and matches_eager(module, eager, query, key, value, scaling, options):
        weights = query.new_zeros(*query.shape[:3], key.shape[2]) if _weights_wanted.get() else None
        out = torch.stack([*_attend_to_pages(query, key, attention_mask, Softmax.of(scaling, options), weights)])
        return out.transpose(1, 2).contiguous(), weights
    if layer.selector is not None and layer.selector.drops:
        raise ConfigError(
            f"{type(module).__name__} has attention of its own kind, which needs all keys and values; take [kv] "
            'attention = "exact"'
        )
    keys, values = key.visible.gather(key.expansion)
    mask = _make_written(attention_mask, query, keys)
    return eager(module, query, keys, values, mask, scaling=scaling, dropout=dropout, **options)


def _is_causal(module: nn.Module, options: Mapping[str, Any]) -> bool:
    """Whether transformers' sdpa function, given no mask, lets tokens see only those up to themselves."""
    given = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _see_all(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """A mask that hides nothing, without storage."""
    return query.new_zeros(()).expand(1, 1, query.shape[2], key.shape[2])


def _as_given(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """``mask`` as transformers makes it for its sdpa function: none where that knows the causal one."""
    if not isinstance(mask, CausalMask):
        return mask
    return None if query.shape[2] in (1, key.shape[2]) else mask


def _attend_to_pages(
    query: torch.Tensor,
    key: PagedTensor,
    mask: torch.Tensor | None,
    softmax: Softmax,
    weights: torch.Tensor | None,
) -> Iterator[torch.Tensor]:
    """Yield [Hq, R, D] for each sequence; ``weights`` [B, Hq, R, T], zeros, are filled."""
    visible, layer = key.visible, key.visible.layer
    few = visible.new is None and key.expansion is None and query.shape[2] <= FEW_ROWS
    masks = [
        None if mask is None else mask[min(number, len(mask) - 1)][..., : key.shape[2]]
        for number in range(len(visible.sequences))
    ]
    if few:
        written = [_make_written(None if here is None else here[None], query, key) for here in masks]
        biases = [None if bias is None else bias[0] for bias in written]
        if (device_pages := layer.access.device_pages) is not None:
            yield from attend_split(visible, device_pages, query, softmax, biases, weights)
            return
    for number, sequence in enumerate(visible.sequences):
        own = query[number].contiguous()
        kept = None if weights is None else weights[number]
        if few:
            bias = biases[number]
            attention = PageAttention(layer.access, sequence, visible.start, visible.paged, own, softmax, bias)
            yield attend(layer, number, attention, kept)
        else:
            yield _attend_many(visible, number, sequence, own, key, masks[number], softmax, kept)


def _attend_many(
    visible: Visible,
    number: int,
    sequence: SequencePages,
    query: torch.Tensor,
    key: PagedTensor,
    mask: torch.Tensor | None,
    softmax: Softmax,
    weights: torch.Tensor | None,
) -> torch.Tensor:
    selector = visible.layer.selector
    watched = 0 if selector is None else selector.count_watched(query.shape[1])
    masses = torch.zeros(visible.length, device=query.device) if watched else None
    blockwise = BlockwiseAttention(
        query, softmax.scaling, softcap=softmax.softcap, sinks=softmax.sinks, watched=watched
    )
    first_query = visible.length - query.shape[1]
    alone = not visible.paged
    for sweep in range(blockwise.first, 3):
        for at, keys, values in _read_pieces(visible, number, sequence):
            if key.expansion is not None:
                keys, values = (x[0] for x in key.expansion(keys[None], values[None]))
            span = slice(at, at + keys.shape[1])
            part, counted, kept = (None if x is None else x[..., span] for x in (mask, masses, weights))
            offset = first_query - at
            blockwise.add(sweep, keys, values, offset=offset, mask=part, alone=alone, masses=counted, weights=kept)
    if selector is not None:
        last = None if mask is None else mask[0, -1].cpu()
        selector.on_prefill(visible.layer, number, query.shape[1], None if masses is None else masses.cpu(), last)
    return blockwise.finish()


def _read_pieces(
    visible: Visible, number: int, sequence: SequencePages
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield keys and values [H, n, D] of the visible tokens of sequence ``number``, some pages at a time, and the new
    tokens as a whole, each with the number of its first token."""
    access, tokens = visible.layer.access, visible.layer.access.tokens
    each = sum(shape.heads * shape.dim * shape.dtype.itemsize for shape in access.shapes)
    room = max(tokens, visible.layer.staging // 4 // each // tokens * tokens)
    for start, end in access.find_kept_spans(sequence, visible.start, visible.start + visible.paged):
        while start < end:
            stop = min(end, (start + room) // tokens * tokens)
            keys, values = access.gather(sequence, start, stop - start)
            yield start - visible.start, keys, values
            start = stop
    if visible.new is not None:
        yield visible.paged, visible.new[0][number], visible.new[1][number]


def _count_eager_bytes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    """Bytes that gathered keys and values take, with the tensors that eager attention makes of them."""
    batch, heads, rows, _ = query.shape
    tokens = key.shape[2]
    gathered = sum(x.shape[1] * x.shape[3] for x in (key, value)) * tokens * key.itemsize
    repeated = heads * tokens * (key.shape[3] + value.shape[3]) * key.itemsize
    scores = heads * rows * tokens * (4 + 3 * key.itemsize)
    return int(batch * (gathered + repeated + scores))


def _make_written(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """``mask`` as eager functions take it; for None, the causal mask of the last tokens."""
    rows, tokens = query.shape[2], key.shape[2]
    if mask is not None:
        return mask[..., :tokens]
    return None if rows == 1 else make_causal_mask(rows, tokens, query.dtype, query.device)
