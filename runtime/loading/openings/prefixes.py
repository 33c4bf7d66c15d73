"""Opens the stored prompts of a loaded model, from its settings."""

from typing import Any

import torch

from ....tiering.store.bundle.manifest import Manifest
from ....tiering.store.prefixes.prefixes import PrefixStore
from ...checkpoints.modules import is_experts
from ...config.config import Config
from ...kv.cache.tier import KVTier
from ...prefixes.identity.live_identity import LiveIdentity
from ...prefixes.plain import find_flags
from ...prefixes.prefix import Prefixes
from ...prefixes.prefix_identity import describe_identity
from ...routing.top_k import experts_per_token

LEAST, MOST = 1024, 4096
"""Tokens of a block. Each is a forward call, which streams the weights: from so many on they come beside computing."""
ROWS = 256
"""Tokens for each expert of a block: as many as it takes for that."""
SHARE = 1 / 4
"""Of the context that a block may be, at most."""


def open_prefixes(
    settings: Config, quota: int, model: Any, manifest: Manifest, tier: KVTier | None, *, label: str
) -> Prefixes:
    """Those of ``model``, as it is installed, within ``quota`` bytes; ``tier`` is where its KV lies, if it is in pages.
    Raises ConfigError and OSError where the store cannot be used."""
    # In pages, what is summed up together follows from how much there is room for.
    paged = None if tier is None else settings.kv.model_dump(include={"attention", "epsilon", "summary", "host"})
    device = None
    if model.device.type != "cpu":
        device = {"kind": _kind(model.device)} | settings.experts.model_dump(include={"misses", "products"})
    identity = describe_identity(
        model.config,
        weights=f"{manifest.identity} {settings.weights.quality}",
        dtype=manifest.dtype,
        paged=paged,
        device=device,
    )
    store = PrefixStore(settings.store.path, quota, direct=settings.direct)
    return Prefixes(
        store,
        LiveIdentity(model, identity, model.device),
        model.config,
        label=label,
        salt=settings.kv.namespace,
        block=block_of(model),
        device=model.device,
        flags=find_flags(model),
    )


def _kind(device: torch.device) -> str:
    """Devices of one kind compute the same bits."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def block_of(model: Any) -> int:
    """Tokens of a block of ``model``: the same under any budget, as it decides about last bits; a power of two."""
    used = experts_per_token(model)
    experts = {path: module.num_experts for path, module in model.named_modules() if is_experts(module)}
    sparsest = max((count // (used[path] or count) for path, count in experts.items()), default=1)
    most = min(MOST, max(LEAST, ROWS * sparsest))
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if isinstance(positions, int):
        most = min(most, int(positions * SHARE))
    return 1 << (max(most, 1).bit_length() - 1)
