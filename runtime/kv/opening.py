"""Makes the KV tier of a model, from its settings."""

from typing import Any

from ...kernels.kv.summaries.registry import SUMMARIES
from ...tiering.policy.reads import Reading
from ...tiering.units import MiB
from ..config import Config
from ..reading import open_reader
from .certified import Certificates
from .formats import Encoding
from .pool import PagePool
from .spill import Spill
from .tier import KVTier

STAGING, MOST_STAGING = 1 / 4, 8 * MiB
"""Bytes that a layer's keys and values may take as transformers wants them, beside [kv] host: a share of that, and at
most. Eager attention of more takes several times as long as ours."""


CHOSEN_TOKENS = 64
"""Tokens of a page where attention chooses among pages: larger ones hold more that is not needed."""


def kv_tier(settings: Config, reading: Reading, model: Any) -> KVTier | None:
    """Where KV lies, for a model with the configuration ``model``; None where transformers keeps it. ``reading`` is how
    the store's drive is read best. Raises PenstockError where the store can take no file."""
    if settings.kv_host is None:
        return None
    spill = Spill(settings.store.path / "kv", open_reader(reading), direct=settings.direct)
    pool = PagePool(settings.kv_host, spill, settings.kv_flash_limit)
    certificates = None
    if settings.kv.attention == "certified":
        certificates = Certificates(settings.kv.epsilon, SUMMARIES[settings.kv.summary])
    encoding = Encoding(settings.kv.format)
    decoder = model.get_text_config(decoder=True)
    return KVTier(
        pool,
        min(int(settings.kv_host * STAGING), MOST_STAGING),
        layers=getattr(decoder, "num_hidden_layers", 1),
        positions=getattr(decoder, "max_position_embeddings", None),
        page_tokens=None if certificates is None and encoding.keeps else CHOSEN_TOKENS,
        encoding=encoding,
        certificates=certificates,
    )
