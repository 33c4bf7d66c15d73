"""Queries and keys to measure certified attention with: of a model that reads a text, and random ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "penstock_recorded"


@dataclass(frozen=True)
class Step:
    """What one new token asks of one layer: query [Hq, 1, D], keys [H, T, D], the token's own included."""

    query: torch.Tensor
    keys: torch.Tensor
    scaling: float


class Recorder:
    """An attention function that keeps the queries and keys it is given, after their rotary embedding."""

    def __init__(self) -> None:
        self.layers: list[tuple[torch.Tensor, torch.Tensor, float]] = []

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *args: Any,
        **more: Any,
    ) -> Any:
        self.layers.append((query[0], key[0], more.get("scaling") or query.shape[-1] ** -0.5))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, *args, **more)


@torch.inference_mode()
def of_model(folder: Path, text: str, context: int, *, windows: int, per_window: int) -> Iterator[Step]:
    """Of each layer: the last ``per_window`` tokens of ``windows`` windows of ``context`` tokens each, as if each token
    were the newest. Raises ValueError if the text is too short."""
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0]
    if len(ids) < windows * context:
        raise ValueError(f"the text has {len(ids)} tokens; {windows} windows of {context} need {windows * context}")
    recorder = Recorder()
    ALL_ATTENTION_FUNCTIONS.register(NAME, recorder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation=NAME)
    for start in range(0, windows * context, context):
        recorder.layers.clear()
        model(ids[None, start : start + context], use_cache=False)
        for query, keys, scaling in recorder.layers:
            for end in range(context - per_window + 1, context + 1):
                yield Step(query[:, end - 1 : end], keys[:, :end], scaling)


def isotropic(context: int, *, steps: int, dim: int, seed: int) -> Iterator[Step]:
    """Keys and queries without any structure, scores with a standard deviation of 2.5: eight heads on two."""
    chance = torch.Generator().manual_seed(seed)
    keys = torch.randn(2, context, dim, generator=chance).bfloat16()
    for _ in range(steps):
        yield Step((2.5 * torch.randn(8, 1, dim, generator=chance)).bfloat16(), keys, dim**-0.5)


def peaked(context: int, *, steps: int, dim: int, seed: int) -> Iterator[Step]:
    """Keys in passages of 32 to 256 tokens that have a direction each; a query is about one passage, and half of its
    heads about the newest. The passage's scores are some 16 above all others, whose standard deviation is 3."""
    chance = torch.Generator().manual_seed(seed)
    passage = torch.zeros(context, dtype=torch.long)
    end = count = 0
    while end < context:
        start, end = end, end + int(torch.randint(32, 257, (), generator=chance))
        passage[start:end] = count
        count += 1
    topics = torch.randn(2, count, dim, generator=chance)
    keys = (topics[:, passage] + torch.randn(2, context, dim, generator=chance)).bfloat16()
    for _ in range(steps):
        about = torch.randint(count, (8,), generator=chance)
        about[::2] = count - 1
        # topic . topic is about dim, so the passage's scores are 16 higher; of the others, noise is left.
        query = 16 * dim**-0.5 * topics[torch.arange(8) // 4, about] + 0.5 * torch.randn(8, dim, generator=chance)
        yield Step(query[:, None].bfloat16(), keys, dim**-0.5)
