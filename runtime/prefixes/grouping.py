"""Into which forward calls a prompt is divided, and whether blocks may be computed together with the same bits.

One call for several blocks is faster: a block of its own with others before it gets a mask, and attention to what the
mask hides. torch's attention on CPUs takes keys TILE at a time, whatever their number; what a mask hides adds zeros. So
where blocks are made of whole tiles, and all else computes every row by itself, each token gets the same bits in any
call. Whether that holds for a model on this machine is tried once, on one prompt, and kept with the other trials
about numbers of rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ...kernels.products.row_parts import BIT_TRIALS, leaves_nothing
from ..checkpoints.modules import is_experts, layer_of
from ..modules.chunks import is_library_code

TILE = 512
REST = 512
"""So many tokens behind the last block are computed together with it. Fewer might be multiplied in another order."""

_MIXING = frozenset({"bmm", "baddbmm", "_softmax", "convolution", "cumsum"})
"""Operations that may sum over tokens, in an order that follows from how many there are."""


def call_ends(done: int, total: int, *, block: int, together: bool) -> list[int]:
    """After which tokens the forward calls end that compute a prompt of ``total`` tokens, ``done`` of which, full
    blocks, are there already. The last call has at least one token that belongs to no block before it."""
    boundary = (total - 1) // block * block
    ends = [*range(block, boundary + 1, block)]
    if together:
        ends = [boundary] if total - boundary < REST else []
    return [end for end in (*ends, total) if end > done]


def may_be_together(model: Any, token_ids: Sequence[int], cache: Cache, *, block: int, kind: str) -> bool:
    """Whether a prompt's blocks have the same bits when they are computed together.

    ``kind`` says all that the bits depend on but the machine. What it names is tried once, on a prompt that ``cache``
    has nothing of yet; that computes up to ``block`` + 2 x REST + 2 tokens more than the prompt takes. The cache may
    have the first block afterwards.
    """
    total = len(token_ids)
    if total <= block + REST or block % TILE or not _is_rowwise(model, cache) or not _is_even(model, total, block):
        return False
    key = f"blocks of {block} tokens together, {torch.get_num_threads()} threads, {kind}"
    if key not in BIT_TRIALS and not cache.get_seq_length():
        BIT_TRIALS[key] = _equal(model, torch.tensor([token_ids[: block + REST + 1]]), cache, block)
    return BIT_TRIALS.get(key, False)


def _is_rowwise(model: Any, cache: Cache) -> bool:
    """Whether only attention, as torch computes it, looks at several tokens. Experts get as many rows as the router
    sends them, which depends on the call."""
    plain = type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
    if not plain or model.config._attn_implementation != "sdpa":
        return False
    if model.device.type != "cpu":  # a device's attention divides keys in another way
        return False
    return not any(is_experts(module) or not is_library_code(module) for module in model.modules())


def _is_even(model: Any, total: int, block: int) -> bool:
    """Whether elementwise operations leave no number over in any call that a prompt of ``total`` tokens may be divided
    into: what is left over can have other bits."""
    modules = dict(model.named_modules())
    inside = [module for path, module in modules.items() if layer_of(path, modules) not in (None, path)]
    widths = {size for module in inside for weight in module.parameters(recurse=False) for size in weight.shape}
    rest = total - (total - 1) // block * block
    calls = {block, *range(rest, total + 1, block)}
    return all(leaves_nothing(rows, widths, model.dtype, torch.get_num_threads()) for rows in calls)


def _equal(model: Any, ids: torch.Tensor, cache: Cache, block: int) -> bool:
    """Whether ``ids`` [1, N] have the same keys, values and last logits in one call as in two, the first of which has
    ``block`` tokens. These are left in the fresh ``cache``."""
    whole = DynamicCache(config=model.config)
    with torch.no_grad(), _Watch() as watch:
        once = model(ids, past_key_values=whole, use_cache=True, logits_to_keep=1).logits
        if watch.mixes:
            return False
        model(ids[:, :block], past_key_values=cache, use_cache=True, logits_to_keep=1)
        twice = model(ids[:, block:], past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    layers = list(zip(whole.layers, cache.layers, strict=True))
    equal = all(torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in layers)
    cache.crop(block - ids.shape[1])
    return equal and torch.equal(once, twice)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """``mixes``: whether something but torch's own attention may have summed over tokens."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mixes = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.mixes = self.mixes or func.overloadpacket.__name__ in _MIXING
        return func(*args, **(kwargs or {}))
