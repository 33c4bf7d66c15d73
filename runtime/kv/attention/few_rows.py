"""Attention of a few queries of one sequence: select pages, take the softmax over their scores, weigh the values."""

from collections.abc import Sequence

import torch

from ..views.page_attention import PageAttention
from ..views.selector import AttendedLayer


def attend(
    layer: AttendedLayer, number: int, attention: PageAttention, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """[Hq, R, Dv] for sequence ``number`` of ``layer``, of all pages or of those that the layer's selector chooses.
    ``weights`` [Hq, R, T], zeros, are filled with the probability of each token. Raises what the pool raises."""
    selector = layer.selector
    if selector is None:
        pages: Sequence[int] = range(attention.count)
        attention.read_all()
    else:
        pages = selector.choose(attention, number)
    probabilities = attention.softmax.to_probabilities(attention.collect_scores(pages))
    if weights is not None:
        attention.spread(pages, probabilities, weights)
    if selector is not None:
        selector.on_attention(layer, number, attention, pages, probabilities)
    elif layer.counts_attention:
        attention.count_attention(probabilities)
    return attention.weigh(pages, probabilities)
