"""Runs models forward by forward: prompts, then tokens one at a time; and compares what two models say."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

GREEDY: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
"""Options of ``generate``."""


def decode(
    model: PreTrainedModel,
    chunks: Sequence[torch.Tensor],
    steps: int,
    *,
    mask: torch.Tensor,
    tokens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, float32 [B, len(chunks) + steps, V], of the last token of each chunk of a prompt, and of ``steps`` single
    tokens: those of ``tokens`` [B, steps or more], or the best ones; and the best tokens. ``mask`` [B, T] is that of
    the prompt."""
    past, logits, at = None, [], 0
    mask = functional.pad(mask, (0, steps), value=1)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    # What each forward is given; None: the best token of the forward before.
    given = [*chunks, *([None] * steps if tokens is None else tokens[:, :steps].split(1, 1))]
    with torch.no_grad():
        for some in given:
            ids = logits[-1].argmax(-1) if some is None else some
            end = at + ids.shape[1]
            options = {"attention_mask": mask[:, :end], "position_ids": places[:, at:end], "past_key_values": past}
            out = model(ids, use_cache=True, logits_to_keep=1, **options)
            past, at = out.past_key_values, end
            logits.append(out.logits[:, -1:])
    found = torch.cat(logits, 1)
    return found.float(), found.argmax(-1)


def step_through(model: PreTrainedModel, ids: torch.Tensor, past: Any = None, steps: int = 20) -> torch.Tensor:
    """Logits [B, T + steps, V] of a prompt ``ids`` [B, T] behind ``past``, and of its first tokens once more, one at a
    time."""
    with torch.no_grad():
        out = model(ids, past_key_values=past, use_cache=True)
        logits = [out.logits]
        for step in range(steps):
            out = model(ids[:, step : step + 1], past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits)
    return torch.cat(logits, 1)


def are_close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether float32 logits differ in the order of sums alone."""
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


def assert_says_the_same(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    """Logits [B, T, V] of a model in ``dtype``: they are near, and where the best token is clear it is the same one."""
    near = (1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps) * wanted.abs().amax(-1)
    assert bool(((found - wanted).abs().amax(-1) <= near).all())
    best = wanted.topk(2, -1).values
    clear = best[..., 0] - best[..., 1] > 2 * near
    assert float(clear.float().mean()) > (0.99 if dtype == torch.float32 else 0.5)
    assert torch.equal(found.argmax(-1)[clear], wanted.argmax(-1)[clear])


def page_bytes(model: PreTrainedModel, rows: int, tokens: int) -> int:
    """Of ``rows`` sequences of ``tokens`` tokens, in pages of a paged ``model``; of layers with a window too."""
    past: Any = model(torch.full((rows, 1), 3), use_cache=True).past_key_values
    shapes = [shape for layer in past.layers for shape in getattr(layer, "shapes", ())]
    pages = -(-tokens // shapes[0].tokens)
    return rows * pages * sum(-(-shape.size // 4096) * 4096 for shape in shapes)
