"""Makes the KV tier of a model, from its settings."""

from typing import Any

from ...tiering.policy.reads import Reading
from ..config import Config
from ..reading import open_reader
from .pool import PagePool
from .spill import Spill
from .tier import KVTier

STAGING = 1 / 4
"""Bytes that a layer's keys and values may take as transformers wants them, beside [kv] host, as a share of it."""


def kv_tier(settings: Config, reading: Reading, positions: int | None) -> KVTier | None:
    """Where KV lies, for a model with ``positions``; None where transformers keeps it. ``reading`` is how the store's
    drive is read best. Raises PenstockError where the store can take no file."""
    if settings.kv_host is None:
        return None
    spill = Spill(settings.store.path / "kv", open_reader(reading), direct=settings.direct)
    pool = PagePool(settings.kv_host, spill, settings.kv_flash_limit)
    return KVTier(pool, int(settings.kv_host * STAGING), positions)


def positions(config: Any) -> int | None:
    """Tokens that a context of the model may have; None: it does not say."""
    found: int | None = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return found
