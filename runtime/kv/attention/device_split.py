"""Attention of a few queries to pages some of which are on the device: each page is computed on where it is.

The device gets its pages first. While it computes, the CPU computes on the pages of host memory, as they come from
flash. Both compute scores, whose sums are merged, and then weigh values. Only the sums and the CPU's weighted values
are copied to the device.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ....kernels.kv.merge_softmax import SoftmaxSums, weigh_values
from ....tiering.kv.device_pages import Pair
from ..pages.device_pages import UpperTier
from ..views.device_access import clip_span
from ..views.page_attention import PageAttention
from ..views.softmax import Softmax
from ..views.visible import Visible
from .few_rows import attend

_PIECE = 32 << 20
"""The most bytes of keys and values that the device computes on together."""
_CPU = torch.device("cpu")


class _DevicePart(NamedTuple):
    """Some pages on the device, the spans of their visible tokens, and the scores [Hq, R, n] of these."""

    pairs: Sequence[Pair]
    spans: Sequence[tuple[int, int]]
    scores: torch.Tensor
    sums: SoftmaxSums


def attend_split(
    visible: Visible,
    device_pages: UpperTier,
    query: torch.Tensor,
    softmax: Softmax,
    biases: Sequence[torch.Tensor | None],
    weights: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """Yield [Hq, R, Dv] for each sequence, on the device, where ``query`` [B, Hq, R, D] is; ``biases`` [1 or Hq, R, T]
    are added to the scores. If ``weights`` [B, Hq, R, T], zeros, are to be filled, the CPU computes on all pages.
    Raises what the pool raises, and Closed."""
    # Before the device has more to do: this waits for it.
    here, here_softmax = query.to(_CPU), softmax.to(_CPU)
    layer = visible.layer
    attentions = [
        PageAttention(
            layer.access,
            sequence,
            visible.start,
            visible.paged,
            own.contiguous(),
            here_softmax,
            None if bias is None else bias.to(_CPU),
        )
        for sequence, own, bias in zip(visible.sequences, here, biases, strict=True)
    ]
    if weights is not None:
        for number, attention in enumerate(attentions):
            kept = torch.zeros_like(weights[number], device=_CPU)
            yield attend(layer, number, attention, kept).to(device_pages.compute)
            weights[number].copy_(kept)
        return
    pairs: list[list[Pair]] = []
    try:
        pairs.extend(device_pages.look(attention.keys) for attention in attentions)
        on_device = [
            [*_score_on_device(visible, device_pages, *each, softmax)]
            for each in zip(pairs, query, biases, strict=True)
        ]
        for number, (attention, parts) in enumerate(zip(attentions, on_device, strict=True)):
            if parts:
                yield _merge(visible, device_pages, attention, parts).to(query.dtype)
            else:
                yield attend(layer, number, attention).to(device_pages.compute)
    finally:
        device_pages.looked([pair for some in pairs for pair in some])


def _score_on_device(
    visible: Visible,
    device_pages: UpperTier,
    pairs: Sequence[Pair],
    query: torch.Tensor,
    bias: torch.Tensor | None,
    softmax: Softmax,
) -> Iterator[_DevicePart]:
    """Yield the scores of ``query`` [Hq, R, D] with the visible tokens of ``pairs``, piece by piece."""
    start, end = visible.start, visible.start + visible.paged
    tokens = visible.layer.access.tokens
    each = max(1, _PIECE // pairs[0].size) if pairs else 1
    for at in range(0, len(pairs), each):
        some = pairs[at : at + each]
        spans = [clip_span(pair.keys, tokens, start, end) for pair in some]
        keys = _collect_tokens(visible, device_pages, 0, some, spans)
        scores = torch.matmul(query.reshape(len(keys), -1, query.shape[-1]), keys.mT) * softmax.scaling
        scores = softmax.cap(scores.view(*query.shape[:2], -1))
        if bias is not None:
            scores = scores + torch.cat([bias[..., first - start : last - start] for first, last in spans], -1)
        yield _DevicePart(some, spans, scores, SoftmaxSums.of(scores))


def _merge(
    visible: Visible, device_pages: UpperTier, attention: PageAttention, parts: Sequence[_DevicePart]
) -> torch.Tensor:
    """``attention`` to the ``parts`` and to all its other pages, float32 [Hq, R, Dv]."""
    there = {pair.keys for part in parts for pair in part.pairs}
    rest = [page for page, keys in enumerate(attention.keys) if keys not in there]
    sums, scores = list[SoftmaxSums](), torch.empty(0)
    if rest:
        attention.read_here(rest)
        scores = attention.collect_scores(rest)
        sums.append(SoftmaxSums.of(scores))
    if attention.softmax.sinks is not None:
        sums.append(SoftmaxSums.of_sinks(attention.softmax.sinks, attention.query.shape[1]))
    whole = SoftmaxSums.merge([*sums, *(part.sums.to(_CPU) for part in parts)])
    whole_there = whole.to(device_pages.compute)
    outs = [
        weigh_values(
            whole_there.to_probabilities(part.scores), _collect_tokens(visible, device_pages, 1, part.pairs, part.spans)
        )
        for part in parts
    ]
    if rest:
        outs.append(
            attention.weigh_wide(rest, whole.to_probabilities(scores)).to(device_pages.compute, non_blocking=True)
        )
    return torch.stack(outs).sum(0)


def _collect_tokens(
    visible: Visible, device_pages: UpperTier, side: int, pairs: Sequence[Pair], spans: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """Keys (``side`` 0) or values (1) of tokens in ``spans`` of ``pairs``, [H, n, D]."""
    shape = visible.layer.access.shapes[side]
    found = []
    for pair, (first, last) in zip(pairs, spans, strict=True):
        own = pair.keys.index * shape.tokens
        found.append(device_pages.numbers(pair, side, shape)[:, first - own : last - own])
    return torch.cat(found, 1)
