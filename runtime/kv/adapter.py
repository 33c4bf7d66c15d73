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
from .attention.attention import paged_attention, paged_eager_attention, with_weights
from .cache.cache import PagedCache
from .cache.tier import KVTier
from .views.masks import make_paged_eager_mask, make_paged_mask, masks_for_pages
from .views.paged_tensors import defer_expansion

IMPLEMENTATION, EAGER = "penstock-paged", "penstock-paged-eager"
"""As ``attn_implementation``, for models whose own is sdpa or another, and for those whose own is eager."""

ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, paged_attention)
ALL_ATTENTION_FUNCTIONS.register(EAGER, paged_eager_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, make_paged_mask)
ALL_MASK_ATTENTION_FUNCTIONS.register(EAGER, make_paged_eager_mask)


class PagedKV:
    """The KV of one model, in pages of ``tier``: makes caches, and is around each forward."""

    def __init__(self, model: PreTrainedModel, tier: KVTier) -> None:
        """Raises ConfigError for a model whose cache is none of transformers' usual ones."""
        named = {*inspect.signature(model.forward).parameters, *positional_names(model.forward)}
        if model.config.is_encoder_decoder or "past_key_values" not in named:
            raise ConfigError(f'{type(model).__name__} has no KV cache that can be paged; take [kv] host = "auto"')
        self.tier, self._config = tier, model.config
        self._decoder = model.config.get_text_config(decoder=True)
        for config in _find_decoders(model, self._decoder):
            own = EAGER if config._attn_implementation == "eager" else IMPLEMENTATION
            config._attn_implementation = {"": own}  # not those of the configurations inside, of towers
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
        if past is None and self._wants_cache(kwargs):
            past = kwargs["past_key_values"] = self.new_cache()
        if not isinstance(past, PagedCache):
            yield
            return
        if past.tier is not self.tier:
            raise ConfigError("this KV cache belongs to another model; begin with a new one")
        given = [kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None]
        past.begin_forward(given[0].shape[1] if given else 0)
        try:
            with masks_for_pages(), with_weights(bool(self._find(kwargs, "output_attentions"))):
                yield
        except BaseException:
            past.undo_forward()
            raise

    def _wants_cache(self, kwargs: dict[str, Any]) -> bool:
        """Whether a forward with ``kwargs`` would make a cache that somebody may go on with."""
        return kwargs.get("labels") is None and bool(self._find(kwargs, "use_cache"))

    def _find(self, kwargs: dict[str, Any], name: str) -> Any:
        """The argument ``name`` of a forward with ``kwargs``; if it is not given, as the configuration says."""
        given = kwargs.get(name)
        return getattr(self._decoder, name, getattr(self._config, name, None)) if given is None else given


def _find_decoders(model: PreTrainedModel, decoder: Any) -> list[Any]:
    """``decoder``, the configuration of the text decoder of ``model``, copies of it that its modules have, and that of
    ``model``, by which masks are asked for."""
    found = {id(decoder): decoder, id(model.config): model.config}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(module, "layer_idx") and getattr(config, "model_type", None) == decoder.model_type:
            found[id(config)] = config
    return [*found.values()]
