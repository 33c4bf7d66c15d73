"""A transformers cache whose layers lie in pages, in memory and on flash."""

import copy
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from ....tiering.errors import PenstockError, PromptTooLong
from ....tiering.kv.readahead import Ahead
from .layer import PagedLayer
from .tier import KVTier


class PagedCache(DynamicCache):  # type: ignore[misc]
    """As DynamicCache for ``config``, on pages of ``tier``. Layers that are not attention, or of a kind of their own,
    stay as transformers has them, in memory.

    For one thread at a time. A forward that fails is undone. Errors are those of PagedLayer.
    """

    layers: list[Any]
    layer_class_to_replicate: Any

    def __init__(self, tier: KVTier, config: PreTrainedConfig) -> None:
        super().__init__(config=config.get_text_config(decoder=True))
        self.tier, self._config = tier, config
        self._lost_tokens = False
        self._ahead: Ahead[PagedLayer] = Ahead(tier.pool)
        self.layers = [self._convert(layer) for layer in self.layers]
        if self.layer_class_to_replicate is DynamicLayer:
            self.layer_class_to_replicate = self._add_layer
        tier.pool.own(self, partial(_abandon, self._ahead))

    def begin_forward(self, tokens: int) -> None:
        """Begin a forward with ``tokens`` more tokens. Raises PromptTooLong, and PenstockError for a cache that lost
        tokens."""
        if self._lost_tokens:
            raise PenstockError(
                "this KV cache lost tokens when a forward failed; compute the context again in a new one"
            )
        self._ahead.touched.clear()
        most, length = self.tier.positions, self.get_seq_length() if self._ahead.layers else 0
        if most is not None and length + tokens > most:
            raise PromptTooLong(
                f"the model has {most} positions; {length} tokens are cached and {tokens} more do not fit; "
                "shorten the context, or begin a new cache"
            )

    def undo_forward(self) -> None:
        """Take back what the forward, which failed, has added. If that cannot be done the cache has lost tokens."""
        try:
            for layer in self._ahead.touched:
                layer.undo()
        except PenstockError:
            self._lost_tokens = True
        # Layers that are not paged keep no former state.
        self._lost_tokens |= any(type(layer) is not PagedLayer for layer in self.layers)
        self._ahead.touched.clear()

    def crop(self, *args: Any) -> None:
        """As DynamicCache does it. If it fails when some layers are cropped and others are not, the cache has lost
        tokens."""
        lengths = {layer.get_seq_length() for layer in self._ahead.layers}
        try:
            super().crop(*args)
        except BaseException:
            self._lost_tokens |= lengths != {layer.get_seq_length() for layer in self._ahead.layers}
            raise

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self._lost_tokens = False

    def park(self) -> None:
        """Let all pages leave memory, until more tokens come; also in the middle of a forward that goes on later."""
        for layer in self._ahead.layers:
            layer.park()

    def __deepcopy__(self, memo: dict[int, Any]) -> "PagedCache":
        """A cache that goes on alone from here. Both have the pages that there are. Raises ConfigError where attention
        is approximate."""
        made = memo[id(self)] = PagedCache(self.tier, self._config)
        made.begin_as(self)
        return made

    def begin_as(self, other: "PagedCache") -> None:
        """Be as ``other`` is, for a cache that has no tokens. Raises as copying does."""
        while len(self.layers) < len(other.layers):
            self.layers.append(self._add_layer())
        for number, layer in enumerate(other.layers):
            if isinstance(layer, PagedLayer):
                self.layers[number].copy(layer)
            else:
                self.layers[number] = copy.deepcopy(layer)
        self._lost_tokens = other._lost_tokens

    def __copy__(self) -> Any:
        return self.__reduce_ex__(4)

    def __reduce_ex__(self, protocol: object) -> Any:
        raise PenstockError(
            "this KV cache lies in pages of its model, and cannot be pickled; copy.deepcopy makes another one"
        )

    def _convert(self, layer: Any) -> Any:
        if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer):
            return self._add_layer(getattr(layer, "sliding_window", None))
        if type(layer) in (LinearAttentionAndFullAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer):
            window = getattr(layer, "sliding_window", None)
            made = _PagedHybridLayer(self.tier, self._ahead, window=window, states=layer.number_of_states)
            self._ahead.add(made)
            return made
        return layer

    def _add_layer(self, window: int | None = None) -> PagedLayer:
        layer = PagedLayer(self.tier, self._ahead, window=window)
        self._ahead.add(layer)
        return layer


class _PagedHybridLayer(LinearAttentionLayer, PagedLayer):  # type: ignore[misc]
    """A layer with a recurrent state, which stays in memory, and attention, whose KV is paged."""

    is_compileable = False

    def __init__(self, tier: KVTier, ahead: Ahead[PagedLayer], *, window: int | None, states: int) -> None:
        PagedLayer.__init__(self, tier, ahead, window=window)
        LinearAttentionLayer.__init__(self, number_of_states=states)
        self.is_initialized = False

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        (PagedLayer if args else LinearAttentionLayer).lazy_initialization(self, *args, **kwargs)

    def copy(self, other: Any) -> None:
        """As PagedLayer.copy, with the recurrent state."""
        recurrent = vars(LinearAttentionLayer(number_of_states=other.number_of_states)).keys()
        names = recurrent | (vars(other).keys() - vars(self).keys())
        self.__dict__.update(copy.deepcopy({name: vars(other)[name] for name in names}))
        PagedLayer.copy(self, other)

    def _call_both(self, name: str, *args: Any) -> None:
        getattr(LinearAttentionLayer, name)(self, *args)
        getattr(PagedLayer, name)(self, *args)

    def reset(self) -> None:
        self._call_both("reset")

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._call_both("reorder_cache", beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        self._call_both("crop", tokens_to_remove)

    def activate_past_recording(self) -> None:
        self._call_both("activate_past_recording")


def _abandon(ahead: Ahead[PagedLayer]) -> None:
    for layer in ahead.layers:
        layer.abandon()
