"""Attention of a few rows to pages some of which have a copy on the device: to those there, to the others here.

The device is given its part first; while it computes, so does the CPU, on pages of host memory as they come from flash.
Of those only the sums go up, where both parts are merged by log-sum-exp.
"""

from collections.abc import Iterator, Sequence

import torch

from ...kernels.kv import partial
from ...kernels.kv.partial import Partial
from ...tiering.kv.upper import Pair
from .decode import Looking, attend
from .layer import Visible
from .softmax import Softmax
from .upper import UpperTier, span

_PIECE = 32 << 20
"""Bytes of keys and values that the device looks at together, at most."""
_CPU = torch.device("cpu")


def attend_split(
    visible: Visible, upper: UpperTier, query: torch.Tensor, softmax: Softmax, biases: Sequence[torch.Tensor | None]
) -> Iterator[torch.Tensor]:
    """For each sequence [Hq, R, Dv] on the device, where ``query`` [B, Hq, R, D] is; ``biases`` [1 or Hq, R, T] are
    added to the scores."""
    layer = visible.layer
    # Now, before the device has more to do: this waits for it.
    here, here_softmax = query.to(_CPU), softmax.on(_CPU)
    looks = [
        Looking(visible, row, own.contiguous(), here_softmax, None if bias is None else bias.to(_CPU))
        for row, own, bias in zip(visible.rows, here, biases, strict=True)
    ]
    pairs: list[list[Pair]] = []
    try:
        pairs.extend(upper.look(look.keys) for look in looks)
        above = [[*_above(visible, upper, *each, softmax)] for each in zip(pairs, query, biases, strict=True)]
    finally:
        upper.looked([pair for some in pairs for pair in some])
    for number, (look, parts) in enumerate(zip(looks, above, strict=True)):
        if not parts:
            yield attend(look, number, layer.chooser).to(upper.compute)
            continue
        there = {pair.keys for pair in pairs[number]}
        if rest := [page for page, keys in enumerate(look.keys) if keys not in there]:
            look.read_here(rest)
            parts.append(look.part(rest).on(upper.compute))
        if softmax.sinks is not None:
            parts.append(partial.sink(softmax.sinks, query.shape[2], layer.shapes[1].dim))
        yield partial.merged(parts, query.dtype)


def _above(
    visible: Visible,
    upper: UpperTier,
    pairs: Sequence[Pair],
    query: torch.Tensor,
    bias: torch.Tensor | None,
    softmax: Softmax,
) -> Iterator[Partial]:
    """Attention of ``query`` [Hq, R, D] to visible tokens of ``pairs``, piece by piece."""
    shapes, start, end = visible.layer.shapes, visible.start, visible.start + visible.paged
    tokens = shapes[0].tokens
    each = max(1, _PIECE // pairs[0].size) if pairs else 1
    for at in range(0, len(pairs), each):
        some = [(pair, *span(pair.keys, tokens, start, end)) for pair in pairs[at : at + each]]
        keys, values = (
            torch.cat(
                [
                    upper.numbers(pair, plane, shape)[:, first % tokens : first % tokens + last - first]
                    for pair, first, last in some
                ],
                1,
            )
            for plane, shape in enumerate(shapes)
        )
        scores = torch.matmul(query.reshape(len(keys), -1, query.shape[-1]), keys.mT) * softmax.scaling
        scores = softmax.capped(scores.view(*query.shape[:2], -1))
        if bias is not None:
            scores = scores + torch.cat([bias[..., first - start : last - start] for _, first, last in some], -1)
        yield partial.attended(scores, values)
