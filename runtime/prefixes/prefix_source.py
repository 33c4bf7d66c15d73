"""What of a transformers cache a prefix is stored as, and how a fresh cache is filled from it again.

Layers that keep every token give a part of each block, keys [Hkv, n, Dk] and values [Hkv, n, Dv]. Layers that forget,
with a sliding window or a recurrent state, give tensors of the prefix as a whole, as they are at its end: only from
there can a prompt go on. No code per architecture: what a layer is, its class in transformers says.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from ...kernels.memory.arena import Arena
from ...tiering.prefix.header import Part
from ...tiering.store.prefixes.found import Found
from ..kv.cache.layer import PagedLayer
from ..kv.views.sequence import SequencePages

_KNOWN = (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)
_STEP = 2 << 20


Cut = Callable[[int, int], torch.Tensor]
"""The keys, or values, of so many tokens from one on: [H, n, D]."""

Taker = Callable[[memoryview], None]
"""Takes the bytes of one tensor, which are overwritten afterwards."""


@dataclass(frozen=True, slots=True)
class Contents:
    """A cache of one sequence as it is now: ``length`` tokens, ``blocks`` full blocks of which can be stored.

    ``cuts`` give the tensors of blocks, ``state`` has those of the whole; neither changes when the model goes on.
    ``release`` has to be called at the end, in any thread.
    """

    length: int
    parts: tuple[Part, ...]
    state_parts: tuple[Part, ...]
    cuts: tuple[Cut, ...]
    state: tuple[torch.Tensor, ...]
    block: int
    release: Callable[[], None]

    def fill(self, block: int | None, part: int, buffer: memoryview) -> None:
        """As tiering's Fill."""
        tensor = self.state[part] if block is None else self.cuts[part](block * self.block, self.block)
        # numpy copies on this thread only, torch would take those that the model computes with.
        np.copyto(_bytes_as(buffer, tensor), tensor.view(_bits(tensor.dtype)).numpy())


def is_supported(cache: Cache) -> bool:
    """Whether prefixes of a model that makes such a ``cache`` can be stored: every layer is of a class known here."""
    return bool(cache.layers) and all(type(layer) in _KNOWN or _keeps_all(layer) for layer in cache.layers)


def _keeps_all(layer: Any) -> bool:
    """Whether it is a layer in pages, and drops none that a query could see."""
    return isinstance(layer, PagedLayer) and (layer.selector is None or not layer.selector.drops)


def has_state(cache: Cache) -> bool:
    """Whether a prefix can be gone on from only where its state was stored."""
    return any(_has_window(layer) or isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def contents_of(cache: Cache, block: int) -> Contents | None:
    """What of ``cache`` is stored in blocks of ``block`` tokens; None where that cannot be: with a layer of another
    class, or that holds nothing yet, several sequences. What lies on a device is copied down at once, behind what the
    calling thread has had computed there."""
    if not is_supported(cache):
        return None
    if any(getattr(layer, "is_initialized", True) is False for layer in cache.layers):
        return None
    if not all(_is_single(layer) for layer in cache.layers):
        return None
    shared = [(layer, layer.share(0)) for layer in cache.layers if _is_paged(layer)]
    tokens, state = dict(_token_cuts(cache, dict(shared))), dict(_state_tensors(cache))

    def release() -> None:
        for layer, sequence in shared:
            layer.give_back(sequence)

    first = [cut(0, 0) for cut in tokens.values()]
    if not _is_whole(cache, {*tokens, *state}):
        release()
        return None
    return Contents(
        length=cache.get_seq_length(),
        parts=tuple(_part(name, t, (t.shape[0], block, t.shape[2])) for name, t in zip(tokens, first, strict=True)),
        state_parts=tuple(_part(name, t, tuple(t.shape)) for name, t in state.items()),
        cuts=tuple(tokens.values()),
        # They may be overwritten in place.
        state=tuple(tensor.detach().to("cpu", copy=True) for tensor in state.values()),
        block=block,
        release=release,
    )


def restore(found: Found, cache: DynamicCache, device: torch.device) -> bool:
    """Fill the fresh ``cache`` of a model on ``device`` with ``found``; whether that could be done. It is left fresh
    where not: a tensor is lacking, or damaged. Raises what the pool of a paged cache raises; it is left fresh then,
    too."""
    if not _is_whole(cache, {part.name for part in (*found.parts, *found.state_parts)}):
        return False
    whole = False
    try:
        fill = _fill_pages if any(map(_is_paged, cache.layers)) else _fill_tensors
        whole = fill(found, cache, device)
    finally:
        if not whole:
            for layer in cache.layers:
                if isinstance(layer, PagedLayer) and layer.is_initialized:
                    layer.reset()
    return whole


def _fill_tensors(found: Found, cache: DynamicCache, device: torch.device) -> bool:
    """Read several blocks at a time, to tensors that have room for all tokens."""
    tokens = [torch.empty((1, p.shape[0], found.tokens, p.shape[2]), dtype=_dtype(p)) for p in found.parts]
    state = [torch.empty(p.shape, dtype=_dtype(p)) for p in found.state_parts]
    size = found.tokens // found.blocks
    buffers = threading.local()

    def into(block: int | None) -> Iterator[Sequence[memoryview]]:
        if not hasattr(buffers, "view"):
            buffers.view = _buffer(found)
        if block is None:
            return _through(buffers.view, found.state_parts, _copies(state))
        tensors = [tensor[0, :, block * size : (block + 1) * size] for tensor in tokens]
        return _through(buffers.view, found.parts, _copies(tensors))

    if not found.read(into):
        return False
    parts = (*found.parts, *found.state_parts)
    _set_layers(cache, found.tokens, {part.name: t for part, t in zip(parts, (*tokens, *state), strict=True)}, device)
    return True


def _fill_pages(found: Found, cache: DynamicCache, device: torch.device) -> bool:
    """Read block after block, one layer's keys and values of a block at a time, which go into its pages."""
    state = [torch.empty(p.shape, dtype=_dtype(p)) for p in found.state_parts]
    view = _buffer(found)
    keys: list[torch.Tensor] = []

    def take(part: Part, source: memoryview) -> None:
        tensor = torch.empty(part.shape, dtype=_dtype(part))
        _copy(tensor, source)
        number, _, name = part.name.partition(".")
        keys.append(tensor)
        if name == "values":  # they come after the keys
            cache.layers[int(number)].extend(keys[0][None], keys[1][None])
            keys.clear()

    def into(block: int | None) -> Iterator[Sequence[memoryview]]:
        if block is None:
            return _through(view, found.state_parts, _copies(state))
        return _through(view, found.parts, [partial(take, part) for part in found.parts])

    if not found.read(into, in_order=True):
        return False
    _set_layers(cache, found.tokens, {part.name: t for part, t in zip(found.state_parts, state, strict=True)}, device)
    return True


def _buffer(found: Found) -> memoryview:
    length = max(_STEP, *(part.room for part in (*found.parts, *found.state_parts)))
    return Arena(length, huge_pages=False).view(0, length)


def _through(view: memoryview, parts: Sequence[Part], takers: Sequence[Taker]) -> Iterator[Sequence[memoryview]]:
    """Steps that read ``parts`` into ``view``, several where they fit, and hand each to its one of ``takers``."""
    gathered: list[Callable[[], None]] = []
    filled = 0
    for part, take in zip(parts, takers, strict=True):
        if filled + part.room > len(view):
            yield [view[:filled]]
            for hand_on in gathered:
                hand_on()
            gathered, filled = [], 0
        gathered.append(partial(take, view[filled : filled + part.length]))
        filled += part.room
    yield [view[:filled]]
    for hand_on in gathered:
        hand_on()


def _copies(tensors: Sequence[torch.Tensor]) -> list[Taker]:
    return [partial(_copy, tensor) for tensor in tensors]


def _copy(tensor: torch.Tensor, source: memoryview) -> None:
    np.copyto(tensor.view(_bits(tensor.dtype)).numpy(), _bytes_as(source, tensor))


def _is_paged(layer: Any) -> bool:
    """Whether ``layer`` has all tokens in pages."""
    return isinstance(layer, PagedLayer) and not _has_window(layer)


def _has_window(layer: Any) -> bool:
    return getattr(layer, "sliding_window", None) is not None


def _is_single(layer: Any) -> bool:
    """Whether ``layer`` holds one sequence."""
    if isinstance(layer, PagedLayer):
        return len(layer.sequences) == 1
    held = [layer.keys] if isinstance(layer, DynamicLayer) else []
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        held += [*layer.conv_states.values(), *layer.recurrent_states.values()]
    return all(tensor.shape[0] == 1 for tensor in held if tensor is not None)


def _token_cuts(cache: Cache, shared: Mapping[PagedLayer, SequencePages]) -> Iterator[tuple[str, Cut]]:
    for number, layer in enumerate(cache.layers):
        if _has_window(layer):
            continue
        if isinstance(layer, PagedLayer):
            for plane, name in enumerate(("keys", "values")):
                yield f"{number}.{name}", partial(layer.access.copy_plane, shared[layer], plane, read_on=False)
        elif isinstance(layer, DynamicLayer):
            for name in ("keys", "values"):
                yield f"{number}.{name}", partial(_from_tensor, getattr(layer, name).detach().cpu())


def _from_tensor(tensor: torch.Tensor, start: int, count: int) -> torch.Tensor:
    return tensor[0, :, start : start + count]


def _state_tensors(cache: Cache) -> Iterator[tuple[str, torch.Tensor]]:
    for number, layer in enumerate(cache.layers):
        if _has_window(layer):
            yield f"{number}.keys", layer.keys
            yield f"{number}.values", layer.values
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            for kind, states in (("conv", layer.conv_states), ("recurrent", layer.recurrent_states)):
                for index, tensor in states.items():
                    if tensor is not None:  # some have no recurrent state
                        yield f"{number}.{kind}.{index}", tensor


def _is_whole(cache: Cache, names: set[str]) -> bool:
    """Whether tensors called ``names`` are what the layers of ``cache`` hold, of all of them and of no others."""
    wanted: set[str] = set()
    for number, layer in enumerate(cache.layers):
        if isinstance(layer, (DynamicLayer, PagedLayer)):
            wanted |= {f"{number}.keys", f"{number}.values"}
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            kinds = {f"{number}.{kind}.{i}" for kind in ("conv", "recurrent") for i in range(layer.number_of_states)}
            if not kinds & names:
                return False
            wanted |= kinds & names
    return wanted == names


def _set_layers(cache: DynamicCache, tokens: int, named: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Give the layers of ``cache``, on ``device``, their tensors, ``named`` as in files, as they are after ``tokens``
    tokens."""
    for number, layer in enumerate(cache.layers):
        own = f"{number}."
        _set(layer, tokens, {n.removeprefix(own): t.to(device) for n, t in named.items() if n.startswith(own)})


def _set(layer: Any, tokens: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Make ``layer`` as it is after ``tokens`` tokens, with its ``tensors``."""
    if "keys" in tensors and isinstance(layer, PagedLayer):
        layer.begin_with(tokens, tensors["keys"], tensors["values"])
    elif "keys" in tensors:
        layer.lazy_initialization(tensors["keys"], tensors["values"])
        layer.keys, layer.values = tensors["keys"], tensors["values"]
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = tokens
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        for index in range(layer.number_of_states):
            if (state := tensors.get(f"conv.{index}")) is not None:
                layer.update_conv_state(state, index)
            if (state := tensors.get(f"recurrent.{index}")) is not None:
                layer.update_recurrent_state(state, index)


def _part(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> Part:
    return Part(name, str(tensor.dtype).removeprefix("torch."), shape, math.prod(shape) * tensor.element_size())


def _dtype(part: Part) -> torch.dtype:
    dtype = getattr(torch, part.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _bits(dtype: torch.dtype) -> torch.dtype:
    """A type of the same size that numpy has."""
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


def _bytes_as(buffer: memoryview, tensor: torch.Tensor) -> Any:
    """``buffer`` as an array of the shape of ``tensor``, of numbers of that size."""
    kind = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}[tensor.element_size()]
    return np.frombuffer(buffer, kind).reshape(tuple(tensor.shape))
