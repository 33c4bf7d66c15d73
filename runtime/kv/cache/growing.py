"""Transformers' own cache, whose layers grow in place while a model computes: torch would copy all for every token.

Outside of a forward a layer is what transformers made. Its keys and values are tensors that nobody writes to again: new
tokens go behind them, and only where they are the last that were handed out. After a crop, a copy or an assignment the
next tokens begin a new memory.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

_SHARE, _LEAST = 8, 64
"""Memory for an eighth of the tokens more than there are, and for these at least."""
_TORCHS = DynamicLayer.update


class _Room:
    """Memory for keys or values [B, H, T, D] of a layer, and for more tokens."""

    def __init__(self, held: torch.Tensor, more: int) -> None:
        """Holds ``held`` at first, with room for ``more`` tokens at least."""
        batch, heads, self.filled, dim = held.shape
        self.most = self.filled + max(more, self.filled // _SHARE, _LEAST)
        with torch.inference_mode(False):
            self._numbers = torch.empty(batch, heads, self.most, dim, dtype=held.dtype)
            # Without the version of what it shares: what is written is behind all that was handed out.
            self._writable = self._numbers.data
        self._writable.narrow(2, 0, self.filled).copy_(held)
        self.last = held

    def follows(self, held: torch.Tensor, more: int) -> bool:
        """Whether ``more`` tokens can be added to ``held`` here: it is the last that ``add`` returned."""
        return self.last is held and self.filled == held.shape[2] and self.filled + more <= self.most

    def add(self, states: torch.Tensor) -> torch.Tensor:
        """All tokens, with those of ``states`` at the end."""
        count = states.shape[2]
        self._writable.narrow(2, self.filled, count).copy_(states)
        self.filled += count
        self.last = self._numbers.narrow(2, 0, self.filled)
        return self.last


_ROOMS: "weakref.WeakKeyDictionary[DynamicLayer, dict[str, _Room]]" = weakref.WeakKeyDictionary()
"""By layer, the memory of its keys and values."""


class _GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer during a forward."""

    keys: torch.Tensor
    values: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As DynamicLayer.update."""
        if not self.is_initialized or not _is_plain(self.keys, key_states) or not _is_plain(self.values, value_states):
            grown: tuple[torch.Tensor, torch.Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return grown
        rooms = _ROOMS.setdefault(self, {})
        self.keys = _append(rooms, "keys", self.keys, key_states)
        self.values = _append(rooms, "values", self.values, value_states)
        return self.keys, self.values


def _append(rooms: dict[str, _Room], name: str, held: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    room = rooms.get(name)
    if room is None or not room.follows(held, states.shape[2]):
        room = rooms[name] = _Room(held, states.shape[2])
    return room.add(states)


def _is_plain(held: torch.Tensor, states: torch.Tensor) -> bool:
    """Whether torch's concatenation of both is what their numbers are, one after the other, and no more."""
    if type(held) is not torch.Tensor or type(states) is not torch.Tensor or held.dtype != states.dtype:
        return False
    if not (held.is_cpu and states.is_cpu) or held.dim() != 4 or states.dim() != 4:
        return False
    if held.shape[:2] != states.shape[:2] or held.shape[3] != states.shape[3]:
        return False
    return not (torch.is_grad_enabled() and (held.requires_grad or states.requires_grad))


@contextmanager
def growing(cache: Any) -> Iterator[None]:
    """In here the layers of ``cache`` that are transformers' default grow in place."""
    changes = type(cache) is DynamicCache and DynamicLayer.update is _TORCHS
    layers = [layer for layer in cache.layers if type(layer) is DynamicLayer] if changes else []
    for layer in layers:
        layer.__class__ = _GrowingLayer
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = DynamicLayer
