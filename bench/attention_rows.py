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
class Steps:
    """Queries [Hq, S, D] of S tokens in one layer, each token in a step of its own, and keys [H, T, D]. If
    ``causal``, they are the last S of the T tokens, and no step sees the tokens after its own. Otherwise each step
    sees all keys."""

    query: torch.Tensor
    keys: torch.Tensor
    scaling: float
    causal: bool

    def seen(self, step: int) -> int:
        """The number of tokens whose keys ``step`` sees."""
        return self.keys.shape[1] - (self.query.shape[1] - 1 - step if self.causal else 0)


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
def of_model(folder: Path, text: str, context: int, *, windows: int, per_window: int) -> Iterator[Steps]:
    """Yield the steps of each layer: the last ``per_window`` tokens of ``windows`` windows of ``context`` tokens, as if
    each token were the newest. Raises ValueError if the text is too short."""
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
            yield Steps(query[:, -per_window:], keys, scaling, causal=True)


def isotropic(context: int, *, steps: int, dim: int, seed: int) -> Iterator[Steps]:
    """Yield steps with random keys and queries that have no structure. Scores have a standard deviation of 2.5. Eight
    query heads share two heads of keys."""
    chance = torch.Generator().manual_seed(seed)
    keys = torch.randn(2, context, dim, generator=chance).bfloat16()
    queries = 2.5 * torch.randn(8, steps, dim, generator=chance)
    yield Steps(queries.bfloat16(), keys, dim**-0.5, causal=False)


def peaked(context: int, *, steps: int, dim: int, seed: int) -> Iterator[Steps]:
    """Yield steps whose keys come in passages of 32 to 256 tokens, each with a direction of its own. A query is about
    one passage, and half of its heads are about the newest. The scores of that passage are about 16 above all others,
    whose standard deviation is 3."""
    chance = torch.Generator().manual_seed(seed)
    passage = torch.zeros(context, dtype=torch.long)
    end = count = 0
    while end < context:
        start, end = end, end + int(torch.randint(32, 257, (), generator=chance))
        passage[start:end] = count
        count += 1
    topics = torch.randn(2, count, dim, generator=chance)
    keys = (topics[:, passage] + torch.randn(2, context, dim, generator=chance)).bfloat16()
    about = torch.randint(count, (8, steps), generator=chance)
    about[::2] = count - 1
    # topic . topic is about dim, so the passage's scores are 16 higher; of the others, noise is left.
    own = topics[torch.arange(8)[:, None] // 4, about]
    queries = 16 * dim**-0.5 * own + 0.5 * torch.randn(8, steps, dim, generator=chance)
    yield Steps(queries.bfloat16(), keys, dim**-0.5, causal=False)
