"""Takes the tensors of a prefix from a transformers cache, and fills a fresh cache with them.

Layers that keep every token give a part of each block, keys [Hkv, n, Dk] and values [Hkv, n, Dv]. Layers that forget,
with a sliding window or a recurrent state, give tensors of the prefix as a whole, as they are at its end: a prompt can
go on only from there. There is no code per architecture: the class of a layer in transformers decides.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
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
from ...tiering.prefix.roles import ITEM_BYTES, KEYS, VALUES, Role, StoredTensor
from ...tiering.store.prefixes.found import Found
from ..kv.cache.layer import PagedLayer
from ..kv.views.sequence import SequencePages
from .finite import check_finite

_KNOWN = (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)
_STEP = 2 << 20


CutTokens = Callable[[int, int], torch.Tensor]
"""Takes the number of a first token, and a count n of tokens; their keys, or values, [H, n, D]."""

Taker = Callable[[memoryview], None]
"""Takes the bytes of one tensor, which are overwritten afterwards."""


@dataclass(frozen=True, slots=True)
class Contents:
    """A cache of one sequence as it is now: ``length`` tokens, ``blocks`` full blocks of which can be stored.

    ``cuts`` give the tensors of blocks, described by ``parts``. ``state`` has the tensors of the whole prefix,
    described by ``state_parts``. Neither changes when the model goes on. Call ``release`` at the end, in any thread.
    """

    length: int
    parts: tuple[StoredTensor, ...]
    state_parts: tuple[StoredTensor, ...]
    cuts: tuple[CutTokens, ...]
    state: tuple[torch.Tensor, ...]
    block: int
    release: Callable[[], None]

    def fill(self, block: int | None, part: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the tensor number ``part`` of ``block``, or of the state, if ``block`` is None. Raises
        PrefixDamaged for numbers that are not finite: they would not be taken back."""
        tensor = self.state[part] if block is None else self.cuts[part](block * self.block, self.block)
        # numpy copies on this thread. torch would take threads from the model.
        np.copyto(_view_bytes(buffer, tensor), tensor.view(_bits_type(tensor.dtype)).numpy())
        check_finite(buffer, (self.state_parts if block is None else self.parts)[part])


def is_supported(cache: Cache) -> bool:
    """Whether prefixes of a model with this kind of ``cache`` can be stored: all classes of its layers are known
    here, and one of them counts tokens."""
    counts = any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)
    return counts and all(type(layer) in _KNOWN or _keeps_all(layer) for layer in cache.layers)


def _keeps_all(layer: Any) -> bool:
    """Whether ``layer`` is paged, and drops no page that a query could see."""
    return isinstance(layer, PagedLayer) and (layer.selector is None or not layer.selector.drops)


def has_state(cache: Cache) -> bool:
    """Whether a prompt can go on from a prefix only at its end, where its state was stored."""
    return any(_has_window(layer) or isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def take_contents(cache: Cache, block: int) -> Contents | None:
    """The contents of ``cache`` in blocks of ``block`` tokens; None where they cannot be stored: a layer is of another
    class or holds nothing yet, or there are several sequences. Tensors on a device are copied to the CPU at once, after
    what the calling thread has given the device to compute."""
    if not is_supported(cache):
        return None
    if any(getattr(layer, "is_initialized", True) is False for layer in cache.layers):
        return None
    if not all(_is_single(layer) for layer in cache.layers):
        return None
    # Of whole blocks alone: the page that takes tokens would have to be copied, in memory that nobody has counted.
    whole = cache.get_seq_length() // block * block
    shared = [(layer, layer.share(0, whole)) for layer in cache.layers if _is_paged(layer)]
    tokens, state = dict(_cut_tokens(cache, dict(shared))), dict(_find_state(cache))

    def release() -> None:
        for layer, sequence in shared:
            layer.give_back(sequence)

    first = [cut(0, 0) for cut in tokens.values()]
    known = all(_dtype_name(tensor) in ITEM_BYTES for tensor in (*first, *state.values()))
    if not known or not _is_whole(cache, {role.name for role in (*tokens, *state)}):
        release()
        return None
    return Contents(
        length=cache.get_seq_length(),
        parts=tuple(
            StoredTensor(role, _dtype_name(t), (t.shape[0], block, t.shape[2]))
            for role, t in zip(tokens, first, strict=True)
        ),
        state_parts=tuple(StoredTensor(role, _dtype_name(t), tuple(t.shape)) for role, t in state.items()),
        cuts=tuple(tokens.values()),
        # The model may overwrite them in place.
        state=tuple(tensor.detach().to("cpu", copy=True) for tensor in state.values()),
        block=block,
        release=release,
    )


def restore(found: Found, cache: DynamicCache, device: torch.device) -> bool:
    """Fill the fresh ``cache`` of a model on ``device`` with ``found``; whether that could be done. Otherwise a tensor
    is missing or damaged, and the cache is left fresh. Raises what the pool of a paged cache raises; the cache is left
    fresh then, too."""
    if not _is_whole(cache, {part.name for part in (*found.parts, *found.state_parts)}):
        return False
    if not all(_fits_window(part, cache, found.tokens) for part in found.state_parts):
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
    """Read several blocks at a time, into tensors that have room for all tokens."""
    tokens = [torch.empty((1, p.shape[0], found.tokens, p.shape[2]), dtype=_dtype(p)) for p in found.parts]
    state = [torch.empty(p.shape, dtype=_dtype(p)) for p in found.state_parts]
    size = found.tokens // found.blocks
    buffers = threading.local()

    def into(block: int | None) -> Iterator[Sequence[memoryview]]:
        if not hasattr(buffers, "view"):
            buffers.view = _buffer(found)
        if block is None:
            return _read_through(buffers.view, found.state_parts, _make_copiers(found.state_parts, state))
        tensors = [tensor[0, :, block * size : (block + 1) * size] for tensor in tokens]
        return _read_through(buffers.view, found.parts, _make_copiers(found.parts, tensors))

    if not found.read(into):
        return False
    parts = (*found.parts, *found.state_parts)
    _set_layers(cache, found.tokens, {part.name: t for part, t in zip(parts, (*tokens, *state), strict=True)}, device)
    return True


def _fill_pages(found: Found, cache: DynamicCache, device: torch.device) -> bool:
    """Read block after block, the keys and values of one layer at a time, into its pages."""
    state = [torch.empty(p.shape, dtype=_dtype(p)) for p in found.state_parts]
    view = _buffer(found)
    keys: list[torch.Tensor] = []

    def take(part: StoredTensor, source: memoryview) -> None:
        tensor = torch.empty(part.shape, dtype=_dtype(part))
        _copy(part, tensor, source)
        keys.append(tensor)
        if part.role.kind == VALUES:  # they come after the keys
            cache.layers[part.role.layer].extend(keys[0][None], keys[1][None])
            keys.clear()

    def into(block: int | None) -> Iterator[Sequence[memoryview]]:
        if block is None:
            return _read_through(view, found.state_parts, _make_copiers(found.state_parts, state))
        return _read_through(view, found.parts, [partial(take, part) for part in found.parts])

    if not found.read(into, in_order=True):
        return False
    _set_layers(cache, found.tokens, {part.name: t for part, t in zip(found.state_parts, state, strict=True)}, device)
    return True


def _buffer(found: Found) -> memoryview:
    length = max(_STEP, *(part.room for part in (*found.parts, *found.state_parts)))
    return Arena(length, huge_pages=False).view(0, length)


def _read_through(
    view: memoryview, parts: Sequence[StoredTensor], takers: Sequence[Taker]
) -> Iterator[Sequence[memoryview]]:
    """Yield reads of ``parts`` into ``view``, several at a time where they fit, and hand each part to its taker."""
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


def _make_copiers(parts: Sequence[StoredTensor], tensors: Sequence[torch.Tensor]) -> list[Taker]:
    return [partial(_copy, part, tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _copy(part: StoredTensor, tensor: torch.Tensor, source: memoryview) -> None:
    check_finite(source, part)
    np.copyto(tensor.view(_bits_type(tensor.dtype)).numpy(), _view_bytes(source, tensor))


def _is_paged(layer: Any) -> bool:
    """Whether ``layer`` is paged and keeps all tokens."""
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


def _fits_window(part: StoredTensor, cache: Cache, tokens: int) -> bool:
    """Whether ``part`` of a state behind ``tokens`` tokens has those that its layer in ``cache`` keeps of them."""
    if not part.role.is_kv:
        return True
    window: int = cache.layers[part.role.layer].sliding_window
    return part.shape[2] == (min(tokens, window - 1) if window > 1 else tokens)


def _cut_tokens(cache: Cache, shared: Mapping[PagedLayer, SequencePages]) -> Iterator[tuple[Role, CutTokens]]:
    for number, layer in enumerate(cache.layers):
        if _has_window(layer):
            continue
        if isinstance(layer, PagedLayer):
            for plane, name in enumerate((KEYS, VALUES)):
                yield Role(number, name), partial(layer.access.copy_plane, shared[layer], plane, read_on=False)
        elif isinstance(layer, DynamicLayer):
            for name in (KEYS, VALUES):
                yield Role(number, name), partial(_from_tensor, getattr(layer, name).detach().cpu())


def _from_tensor(tensor: torch.Tensor, start: int, count: int) -> torch.Tensor:
    return tensor[0, :, start : start + count]


def _find_state(cache: Cache) -> Iterator[tuple[Role, torch.Tensor]]:
    for number, layer in enumerate(cache.layers):
        if _has_window(layer):
            paged = isinstance(layer, PagedLayer)
            yield Role(number, KEYS), layer.gather(0) if paged else layer.keys
            yield Role(number, VALUES), layer.gather(1) if paged else layer.values
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            for kind, states in (("conv", layer.conv_states), ("recurrent", layer.recurrent_states)):
                for index, tensor in states.items():
                    if tensor is not None:  # some have no recurrent state
                        yield Role(number, kind, index), tensor


def _is_whole(cache: Cache, names: set[str]) -> bool:
    """Whether ``names`` are those of all tensors that the layers of ``cache`` hold, and no others."""
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
    """Give the layers of ``cache``, on ``device``, their tensors, ``named`` as in files: those after ``tokens``
    tokens."""
    for number, layer in enumerate(cache.layers):
        own = f"{number}."
        _set(layer, tokens, {n.removeprefix(own): t.to(device) for n, t in named.items() if n.startswith(own)})


def _set(layer: Any, tokens: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put ``layer`` into its state after ``tokens`` tokens, with its ``tensors``."""
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


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _dtype(part: StoredTensor) -> torch.dtype:
    """The type of its numbers, which is one of ITEM_BYTES."""
    dtype: torch.dtype = getattr(torch, part.dtype)
    return dtype


def _bits_type(dtype: torch.dtype) -> torch.dtype:
    """A type of the same size that numpy has."""
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


def _view_bytes(buffer: memoryview, tensor: torch.Tensor) -> Any:
    """``buffer`` as an array of the shape of ``tensor``, of integers of its item size."""
    kind = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}[tensor.element_size()]
    return np.frombuffer(buffer, kind).reshape(tuple(tensor.shape))
