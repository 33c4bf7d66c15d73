"""Attention of a few rows to pages some of which have a copy on the device: to those there, to the others here.

The device is given its part first; while it computes, so does the CPU, on pages of host memory as they come from flash:
scores on both sides, then, with what all of them sum up to, values on both. What goes up is these sums, and what the
CPU has weighed.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ....kernels.kv.merge_softmax import Sums, weighed
from ....tiering.kv.device_pages import Pair
from ..cache.layer import Visible
from ..pages.device_pages import UpperTier, span
from ..views.softmax import Softmax
from .few_rows import PageAttention, attend

_PIECE = 32 << 20
"""Bytes of keys and values that the device looks at together, at most."""
_CPU = torch.device("cpu")


class _Part(NamedTuple):
    """Some pages on the device, which of their tokens are visible, and the scores [Hq, R, n] of these."""

    pairs: Sequence[Pair]
    spans: Sequence[tuple[int, int]]
    scores: torch.Tensor
    sums: Sums


def attend_split(
    visible: Visible,
    upper: UpperTier,
    query: torch.Tensor,
    softmax: Softmax,
    biases: Sequence[torch.Tensor | None],
    weights: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """For each sequence [Hq, R, Dv] on the device, where ``query`` [B, Hq, R, D] is; ``biases`` [1 or Hq, R, T] are
    added to the scores. If ``weights`` [B, Hq, R, T], zeros, are to be filled, the CPU looks at all pages."""
    # Now, before the device has more to do: this waits for it.
    here, here_softmax = query.to(_CPU), softmax.on(_CPU)
    looks = [
        PageAttention(visible, row, own.contiguous(), here_softmax, None if bias is None else bias.to(_CPU))
        for row, own, bias in zip(visible.rows, here, biases, strict=True)
    ]
    if weights is not None:
        for number, look in enumerate(looks):
            kept = torch.zeros_like(weights[number], device=_CPU)
            yield attend(look, number, visible.layer.chooser, kept).to(upper.compute)
            weights[number].copy_(kept)
        return
    pairs: list[list[Pair]] = []
    try:
        pairs.extend(upper.look(look.keys) for look in looks)
        above = [[*_scored(visible, upper, *each, softmax)] for each in zip(pairs, query, biases, strict=True)]
        for number, (look, parts) in enumerate(zip(looks, above, strict=True)):
            if parts:
                yield _merged(visible, upper, look, parts).to(query.dtype)
            else:
                yield attend(look, number, visible.layer.chooser).to(upper.compute)
    finally:
        upper.looked([pair for some in pairs for pair in some])


def _scored(
    visible: Visible,
    upper: UpperTier,
    pairs: Sequence[Pair],
    query: torch.Tensor,
    bias: torch.Tensor | None,
    softmax: Softmax,
) -> Iterator[_Part]:
    """Scores of ``query`` [Hq, R, D] with visible tokens of ``pairs``, piece by piece."""
    start, end = visible.start, visible.start + visible.paged
    tokens = visible.layer.shapes[0].tokens
    each = max(1, _PIECE // pairs[0].size) if pairs else 1
    for at in range(0, len(pairs), each):
        some = pairs[at : at + each]
        spans = [span(pair.keys, tokens, start, end) for pair in some]
        keys = _numbers(visible, upper, 0, some, spans)
        scores = torch.matmul(query.reshape(len(keys), -1, query.shape[-1]), keys.mT) * softmax.scaling
        scores = softmax.capped(scores.view(*query.shape[:2], -1))
        if bias is not None:
            scores = scores + torch.cat([bias[..., first - start : last - start] for first, last in spans], -1)
        yield _Part(some, spans, scores, Sums.of(scores))


def _merged(visible: Visible, upper: UpperTier, look: PageAttention, parts: Sequence[_Part]) -> torch.Tensor:
    """Attention to the ``parts`` and to all other pages that ``look`` is at, float32 [Hq, R, Dv]."""
    there = {pair.keys for part in parts for pair in part.pairs}
    rest = [page for page, keys in enumerate(look.keys) if keys not in there]
    sums, scores = list[Sums](), torch.empty(0)
    if rest:
        look.read_here(rest)
        scores = look.scores(rest)
        sums.append(Sums.of(scores))
    if look.softmax.sinks is not None:
        sums.append(Sums.of_sinks(look.softmax.sinks, look.query.shape[1]))
    whole = Sums.merged([*sums, *(part.sums.on(_CPU) for part in parts)])
    whole_there = whole.on(upper.compute)
    outs = [
        weighed(whole_there.probabilities(part.scores), _numbers(visible, upper, 1, part.pairs, part.spans))
        for part in parts
    ]
    if rest:
        outs.append(look.weighed(rest, whole.probabilities(scores)).to(upper.compute, non_blocking=True))
    return torch.stack(outs).sum(0)


def _numbers(
    visible: Visible, upper: UpperTier, plane: int, pairs: Sequence[Pair], spans: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """Keys (``plane`` 0) or values (1) of tokens in ``spans`` of ``pairs``, [H, n, D]."""
    shape = visible.layer.shapes[plane]
    found = []
    for pair, (first, last) in zip(pairs, spans, strict=True):
        own = pair.keys.index * shape.tokens
        found.append(upper.numbers(pair, plane, shape)[:, first - own : last - own])
    return torch.cat(found, 1)
