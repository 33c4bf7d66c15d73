"""A model of transformers' own and the same one in penstock, to which a test does the same things."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import penstock
from tests.support.logits import least_budget
from tests.support.tiny_models import save_tiny

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(1))
"""A prompt of two rows."""

BUDGETS = ("least", "half", "elastic", "ample")
"""Every weight that can be streamed is; some are; all are in memory, but may leave it; all stay there."""


class Pair(NamedTuple):
    """``plain`` is transformers' own, ``streamed`` penstock's."""

    plain: PreTrainedModel
    streamed: PreTrainedModel

    def same_logits(self, ids: torch.Tensor = IDS, **options: Any) -> bool:
        """Whether both compute the same bits for ``ids``."""
        with torch.no_grad():
            return torch.equal(self.plain(ids, **options).logits, self.streamed(ids, **options).logits)


@contextmanager
def pair(
    folder: Path, name: str, budget: str = "ample", dtype: torch.dtype = torch.float32, **options: Any
) -> Iterator[Pair]:
    """The tiny model ``name``, saved below ``folder``, as both. ``budget`` is one of BUDGETS."""
    sizes = {key: options.pop(key) for key in [*options] if key == "tie_word_embeddings"}
    source, store = folder / "model", folder / "store"
    if not source.exists():
        save_tiny(name, source, dtype, **sizes)
    plain = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    memory: Any = "1GiB"
    if budget != "ample":
        formats = {name: value for name, value in options.items() if name == "weights_format"}
        least = least_budget(source, store, **formats)
        total = sum(tensor.nbytes for tensor in plain.parameters())
        memory = {"least": least, "half": max(least, total // 2), "elastic": "1GiB"}[budget]
        options |= {"host_memory_floor": least} if budget == "elastic" else {}
    with penstock.load(source, store=store, host_memory=memory, attn_implementation="eager", **options) as streamed:
        yield Pair(plain, streamed)
