"""Puts a model's KV into pages: gives it our caches, attention function and masks."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...tiering.errors import ConfigError
from ..checkpoints.modules import positional_names
from .attention.attention import paged_attention, with_weights
from .cache.cache import PagedCache
from .cache.tier import KVTier
from .views.masks import make_paged_mask
from .views.paged_tensors import defer_expansion

IMPLEMENTATION = "penstock-paged"
"""As ``attn_implementation``."""

ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, paged_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, make_paged_mask)


class PagedKV:
    """The KV of one model, in pages of ``tier``: makes caches, and is around each forward."""

    def __init__(self, model: PreTrainedModel, tier: KVTier) -> None:
        """Raises ConfigError for a model whose cache is none of transformers' usual ones."""
        named = {*inspect.signature(model.forward).parameters, *positional_names(model.forward)}
        if model.config.is_encoder_decoder or "past_key_values" not in named:
            raise ConfigError(f'{type(model).__name__} has no KV cache that can be paged; take [kv] host = "auto"')
        self.tier, self._config = tier, model.config
        model.config._attn_implementation = IMPLEMENTATION
        for module in model.modules():
            if hasattr(module, "expand_kv"):  # multi-head latent attention expands latents to keys and values
                module.expand_kv = defer_expansion(module.expand_kv)

    def new_cache(self) -> PagedCache:
        """An empty cache."""
        return PagedCache(self.tier, self._config)

    def should_replace(self, cache: Any) -> bool:
        """Whether a paged cache should take the place of ``cache``: it is empty, and of transformers' default kind."""
        return type(cache) is DynamicCache and not cache.is_initialized

    @contextlib.contextmanager
    def forward(self, kwargs: dict[str, Any]) -> Iterator[None]:
        """Around a forward of the model with ``kwargs``: they get a cache if they want one and have none, and a forward
        that fails is undone. Raises ConfigError for the cache of another model, PromptTooLong, PenstockError."""
        past = kwargs.get("past_key_values")
        if past is None and kwargs.get("use_cache", self._config.use_cache) and not kwargs.get("labels"):
            past = kwargs["past_key_values"] = self.new_cache()
        if not isinstance(past, PagedCache):
            yield
            return
        if past.tier is not self.tier:
            raise ConfigError("this KV cache belongs to another model; begin with a new one")
        given = kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        past.begin_forward(0 if given is None else given.shape[1])
        wanted = kwargs.get("output_attentions", getattr(self._config, "output_attentions", False))
        try:
            with with_weights(bool(wanted)):
                yield
        except BaseException:
            past.undo_forward()
            raise
