"""Caches of keys and values that users hold themselves."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import DynamicCache, StaticCache

from ..contexts import within
from ..fields import pick
from ..side import Side
from .step import Step


@dataclass(frozen=True)
class Decode(Step):
    """A prompt, then single tokens, on a cache that goes on from step to step or is new."""

    likelihood: ClassVar[int] = 8

    kind: str = pick("returned", "dynamic", "static", "penstock", "go on")
    rows: int = pick(1, 2)
    tokens: int = pick(11, 3, 30)
    steps: int = pick(4, 1)
    crop: int = pick(0, 0, 2)
    context: str = pick("no_grad", "no_grad", "inference_mode", "autocast, no_grad")

    def run(self, side: Side) -> Any:
        cache = self._cache(side)
        found = []
        with within(self.context):
            out = side.model(side.ids(self.rows, self.tokens), past_key_values=cache, use_cache=True)
            found.append(out.logits)
            for step in range(self.steps):
                past = out.past_key_values
                if self.crop and step == 1 and hasattr(past, "crop"):
                    past.crop(-self.crop)
                out = side.model(side.ids(self.rows, 1, seed=step), past_key_values=past, use_cache=True)
                found.append(out.logits)
        side.cache = (self.rows, out.past_key_values)
        return found

    def _cache(self, side: Side) -> Any:
        config = side.base.config
        if self.kind == "dynamic":
            return DynamicCache(config=config.get_text_config(decoder=True))
        if self.kind == "static":
            return StaticCache(config=config.get_text_config(decoder=True), max_cache_len=64)
        if self.kind == "penstock" and side.ours:
            return side.base.penstock.cache()
        if self.kind == "go on" and side.cache is not None and side.cache[0] == self.rows:
            return side.cache[1]
        return None


@dataclass(frozen=True)
class CacheLooks(Step):
    """What the user sees of a cache that the model filled."""

    what: str = pick("length", "tensors", "reorder", "repeat")

    def run(self, side: Side) -> Any:
        with torch.no_grad():
            cache: Any = side.model(side.ids(2, 9), use_cache=True).past_key_values
            if self.what == "length":
                return int(cache.get_seq_length())
            if self.what == "tensors":
                return [
                    torch.as_tensor(layer.keys) for layer in cache.layers if getattr(layer, "keys", None) is not None
                ]
            if self.what == "reorder":
                cache.reorder_cache(torch.tensor([1, 0]))
                return side.model(side.ids(2, 1), past_key_values=cache).logits
            cache.batch_repeat_interleave(2)
            return side.model(side.ids(4, 1), past_key_values=cache).logits
