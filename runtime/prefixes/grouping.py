"""Divides a prompt into forward calls, and tries whether several blocks in one call give the same bits.

One call for several blocks is faster: a block in a call of its own, behind others, gets a mask, and attention computes
what the mask hides too. torch's attention on CPUs takes keys TILE at a time, whatever their number, and hidden keys add
zeros. So each token gets the same bits in any call, if blocks are whole tiles and everything else computes each row by
itself. A trial on one prompt shows whether that holds for a model on this machine. Its result is kept with the other
trials about numbers of rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ...kernels.products.row_parts import BIT_TRIALS, fills_vectors
from ..checkpoints.modules import is_experts, layer_of
from ..modules.chunks import is_library_code
from ..modules.row_attention import IMPLEMENTATION
from .calls import compute_part

TILE = 512
"""Keys that torch's attention takes at a time."""
REST = 512
"""The least tokens behind the last block that get a call of their own. Fewer might be multiplied in another order."""

_MIXING = frozenset({"bmm", "baddbmm", "_softmax", "convolution", "cumsum"})
"""Operations that may sum over tokens, in an order that depends on how many there are."""


def divide_into_calls(done: int, total: int, *, block: int, together: bool) -> list[int]:
    """The numbers of tokens after which the forward calls end that compute a prompt of ``total`` tokens. ``done``
    tokens, full blocks, are computed already. The last call has at least one token behind the last full block.
    ``together``: full blocks may be computed in one call."""
    boundary = (total - 1) // block * block
    ends = [*range(block, boundary + 1, block)]
    if together:
        ends = [boundary] if total - boundary < REST else []
    return [end for end in (*ends, total) if end > done]


def may_compute_together(model: Any, token_ids: Sequence[int], cache: Cache, *, block: int, kind: str) -> bool:
    """Whether the blocks of the prompt ``token_ids`` have the same bits when they are computed together.

    ``kind`` names everything that the bits depend on except the machine. Each kind is tried once, on a prompt of which
    ``cache`` has nothing yet. The trial computes up to ``block`` + 2 x REST + 2 tokens more than the prompt takes. The
    cache may have the first block afterwards.
    """
    total = len(token_ids)
    if total <= block + REST or block % TILE or not _is_rowwise(model, cache) or not _is_even(model, total, block):
        return False
    key = f"blocks of {block} tokens together, {torch.get_num_threads()} threads, {kind}"
    if key not in BIT_TRIALS and not cache.get_seq_length():
        BIT_TRIALS[key] = _compute_equal(model, torch.tensor([token_ids[: block + REST + 1]]), cache, block)
    return BIT_TRIALS.get(key, False)


def _is_rowwise(model: Any, cache: Cache) -> bool:
    """Whether only attention, as torch computes it, mixes tokens. Experts do not count as such: the number of their
    rows depends on the call."""
    plain = type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
    own = model.config.get_text_config(decoder=True)._attn_implementation
    if not plain or own not in ("sdpa", IMPLEMENTATION):
        return False
    if model.device.type != "cpu":  # a device's attention divides keys in another way
        return False
    return not any(is_experts(module) or not is_library_code(module) for module in model.modules())


def _is_even(model: Any, total: int, block: int) -> bool:
    """Whether the vectors of elementwise operations have no remainder in any call that a prompt of ``total`` tokens may
    be divided into: a remainder can have other bits."""
    modules = dict(model.named_modules())
    inside = [module for path, module in modules.items() if layer_of(path, modules) not in (None, path)]
    widths = {size for module in inside for weight in module.parameters(recurse=False) for size in weight.shape}
    rest = total - (total - 1) // block * block
    calls = {block, *range(rest, total + 1, block)}
    return all(fills_vectors(rows, widths, model.dtype, torch.get_num_threads()) for rows in calls)


def _compute_equal(model: Any, ids: torch.Tensor, cache: Cache, block: int) -> bool:
    """Whether ``ids`` [1, N] have the same keys, values and last logits in one call as in two, the first of which has
    ``block`` tokens. The fresh ``cache`` has these afterwards."""
    whole = DynamicCache(config=model.config)
    with torch.no_grad(), _Watch() as watch:
        once = compute_part(model, ids, whole, ids.shape[1])
        if watch.mixes:
            return False
        compute_part(model, ids, cache, block)
        twice = compute_part(model, ids, cache, ids.shape[1])
    layers = list(zip(whole.layers, cache.layers, strict=True))
    equal = all(torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in layers)
    cache.crop(block - ids.shape[1])
    return equal and torch.equal(once, twice)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """``mixes``: whether anything except torch's own attention may have summed over tokens."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mixes = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.mixes = self.mixes or func.overloadpacket.__name__ in _MIXING
        return func(*args, **(kwargs or {}))
