"""Tiny models with stored prefixes, and prompts for them."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from penstock.runtime.prefixes.identity.live_identity import FixedIdentity
from penstock.runtime.prefixes.prefill import prefill
from penstock.runtime.prefixes.prefix import Prefixes
from penstock.runtime.prefixes.prefix_identity import describe_identity
from penstock.tiering.store.prefixes.prefixes import PrefixStore
from penstock.tiering.units import MiB
from tests.support.tiny_models import tiny_config

BLOCK = 32
"""Tokens."""


def model_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(name), dtype=dtype, attn_implementation="eager").eval()


def prefixes_of(model: Any, folder: Path, *, weights: str = "w", salt: str = "", quota: int = 100 * MiB) -> Prefixes:
    identity = describe_identity(model.config, weights=weights, dtype=str(model.dtype))
    fixed = FixedIdentity(identity, model)
    return Prefixes(PrefixStore(folder, quota), fixed, model.config, label="m", salt=salt, block=BLOCK)


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def continued(model: Any, prompt: list[int], cache: DynamicCache, steps: int = 4) -> list[torch.Tensor]:
    """Logits after ``prompt``, and after each of ``steps`` greedy tokens."""
    logits = [prefill(model, prompt, cache, block=BLOCK)]
    for _ in range(steps):
        prompt = [*prompt, int(logits[-1].argmax())]
        logits.append(prefill(model, prompt, cache, block=BLOCK))
    return logits


def fresh(model: Any) -> DynamicCache:
    return DynamicCache(config=model.config)


def saved(model: Any, prefixes: Prefixes, prompt: list[int]) -> None:
    cache = fresh(model)
    prefill(model, prompt, cache, block=BLOCK)
    assert prefixes.save(prompt, cache) > 0
