"""Bytes of the keys and values of a context, for a model that has no weights yet."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ...kernels.kv.base import PageShape
from ...kernels.kv.registry import FORMATS
from ..checkpoints.modules import is_experts
from ..kv.cache.formats import FINE_SHARE, MIXED

_PAGE = 512
"""Tokens of a page: large enough that its padding does not count."""


@dataclass(frozen=True, slots=True)
class LayerKv:
    """Keys and values of one layer, which keeps all tokens, or the last ``window`` ones."""

    keys: PageShape
    values: PageShape
    window: int | None

    def bytes_in(self, format: str) -> float:
        """Bytes of one token in ``format``, a KV format or "mixed"."""
        if format == MIXED:
            return FINE_SHARE * self.bytes_in("int8") + (1 - FINE_SHARE) * self.bytes_in("int4")
        found = FORMATS[format]
        return (found.key_bytes(self.keys) + found.value_bytes(self.values)) / _PAGE


def find_kv_layers(model: PreTrainedModel) -> list[LayerKv] | None:
    """The layers of transformers' cache for ``model``, which is on the meta device; None for a model that cannot be run
    there. Layers without keys and values are left out."""
    experts = [module for module in model.modules() if is_experts(module)]
    for module in experts:  # tensors without data have no routing; an expert's output has its input's shape
        module.forward = lambda hidden, *_, **__: hidden
    try:
        with torch.no_grad(), torch.device("meta"):
            cache = DynamicCache(config=model.config.get_text_config(decoder=True))
            # Embeddings, not token ids: some models search ids for padding.
            tokens = model.get_input_embeddings()(torch.zeros(1, 2, dtype=torch.long))
            model(inputs_embeds=tokens, past_key_values=cache, use_cache=True)
    except Exception:  # whatever a model does that needs data
        return None
    finally:
        for module in experts:
            del module.forward
    return [_of(layer) for layer in cache.layers if isinstance(getattr(layer, "keys", None), torch.Tensor)]


def count_kv_bytes(layers: list[LayerKv], context: int, format: str) -> tuple[int, int]:
    """Bytes of one more token, and of ``context`` tokens, in ``format``."""
    each = [(layer.bytes_in(format), layer.window) for layer in layers]
    more = sum(size for size, window in each if window is None or context < window)
    return round(more), round(sum(size * min(context, window or context) for size, window in each))


def _of(layer: Any) -> LayerKv:
    keys, values = (PageShape(x.shape[1], _PAGE, x.shape[3], x.dtype) for x in (layer.keys, layer.values))
    return LayerKv(keys, values, getattr(layer, "sliding_window", None))
