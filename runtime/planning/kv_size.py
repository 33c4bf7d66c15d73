"""Bytes of the keys and values of a context, for a model that has no weights yet."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ...kernels.kv.base import PageShape
from ...kernels.kv.registry import FORMATS
from ...tiering.kv.page_size import choose_page_tokens
from ...tiering.kv.setup import KVSetup
from ...tiering.sim.kv import Context, KVLayer
from ...tiering.units import align_up
from ..checkpoints.modules import is_experts
from ..config.config import Config
from ..kv.cache.formats import AS_IS, FINE_SHARE, MIXED
from ..loading.openings.kv import CHOSEN_TOKENS

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

    def paged(self, tokens: int, format: str) -> KVLayer:
        """With pages of ``tokens`` tokens in ``format``."""
        keys, values = (replace(shape, tokens=tokens) for shape in (self.keys, self.values))
        shares = {"int8": FINE_SHARE, "int4": 1 - FINE_SHARE} if format == MIXED else {format: 1.0}
        key_bytes = sum(share * FORMATS[name].key_bytes(keys) for name, share in shares.items())
        value_bytes = sum(share * FORMATS[name].value_bytes(values) for name, share in shares.items())
        return KVLayer(align_up(round(key_bytes)), align_up(round(value_bytes)), tokens, self.window)


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


def context_of(layers: list[LayerKv], length: int, settings: Config) -> Context:
    """A context of ``length`` tokens as ``settings`` would keep it, for the simulator."""
    if settings.kv_host is None:  # transformers keeps it: one token after the other
        each = [KVLayer(round(layer.bytes_in(settings.kv.format)), 0, 1, layer.window) for layer in layers]
        return Context(each, length, None)
    plain = settings.kv.attention == "exact" and settings.kv.format == AS_IS.name
    each = []
    for layer in layers:
        sizes = [shape.heads * shape.dim * shape.dtype.itemsize for shape in (layer.keys, layer.values)]
        tokens = choose_page_tokens(sizes, settings.kv_host, len(layers)) if plain else CHOSEN_TOKENS
        each.append(layer.paged(tokens, settings.kv.format))
    return Context(each, length, KVSetup(settings.kv_host, settings.kv_flash_limit))


def _of(layer: Any) -> LayerKv:
    keys, values = (PageShape(x.shape[1], _PAGE, x.shape[3], x.dtype) for x in (layer.keys, layer.values))
    return LayerKv(keys, values, getattr(layer, "sliding_window", None))
