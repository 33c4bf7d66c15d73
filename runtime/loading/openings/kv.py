"""Makes the KV tier of a model, from its settings."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from ....kernels.devices.base import Device
from ....kernels.kv.summaries.registry import SUMMARIES
from ....tiering.errors import ConfigError
from ....tiering.kv.selection.kv_budget.budget import LEAST, parse_budget
from ....tiering.kv.selection.kv_budget.keeping import KEEPING
from ....tiering.policy.drive_reading import Reading
from ....tiering.store.bundle.folder import SPILLED
from ....tiering.units import MiB
from ...config.config import Config
from ...config.settings import Kv
from ...kv.cache.formats import Encoding
from ...kv.cache.tier import KVTier
from ...kv.pages.device_pages import UpperTier
from ...kv.pages.pool import PagePool
from ...kv.pages.spill import Spill
from ...kv.selectors.budgets import Budgets
from ...kv.selectors.certified import Certificates, CertifiedSelector
from ...kv.selectors.dropping import DroppingSelector
from ...kv.selectors.quest import QuestSelector
from ...kv.views.selector import PageSelection
from ...machine.reading import open_reader
from .kv_memory import count_layers

STAGING, MOST_STAGING = 1 / 4, 8 * MiB
"""Bytes that a layer's keys and values may take in one piece, beside [kv] host: a share of that, and the most. Eager
attention of more takes several times as long as ours."""
CHOSEN_TOKENS = 64
"""Tokens of a page where attention selects pages: larger ones hold more that is not needed."""

CERTIFIED, QUEST = "certified", "quest"
"""The modes that drop no page."""
SHARE = "25%"
"""[kv] budget = "auto"."""


def open_kv_tier(
    settings: Config,
    reading: Reading,
    model: Any,
    floor: int,
    device: Device | None = None,
    on_device: int = 0,
) -> KVTier | None:
    """The KV tier of a model with the configuration ``model``; None where transformers keeps KV. ``reading`` is the
    best way to read the store's drive. ``floor`` bytes of host memory stay when the machine runs short of it. With a
    ``device`` to compute on, ``on_device`` bytes of its memory are for KV. Raises PenstockError where the store can
    take no file, DeviceFull, ConfigError for settings of KV that do not go together."""
    selection = _selection(settings.kv)
    if settings.kv_host is None:
        for key in ("attention", "format", "flash"):
            if (value := getattr(settings.kv, key)) != Kv.model_fields[key].default:
                raise ConfigError(f"[kv] {key} = {value} is for KV in pages; set [kv] host, the memory for them")
        return None
    spill = Spill(settings.store.path / SPILLED, open_reader(reading), direct=settings.direct)
    decoder = model.get_text_config(decoder=True)
    pool = PagePool(settings.kv_host, spill, settings.kv_flash_limit, floor=floor)
    encoding = Encoding(settings.kv.format)
    try:
        device_pages = None if device is None else UpperTier(on_device, device, pool)
    except BaseException:
        pool.close()
        raise
    return KVTier(
        pool,
        min(int(settings.kv_host * STAGING), MOST_STAGING),
        layers=count_layers(model),
        positions=getattr(decoder, "max_position_embeddings", None),
        page_tokens=None if selection is None and encoding.keeps_all else CHOSEN_TOKENS,
        encoding=encoding,
        device_pages=device_pages,
        selection=selection,
    )


def _selection(kv: Kv) -> PageSelection | None:
    """How attention selects pages; None: it reads all. Raises ConfigError for settings that the mode has no use for."""
    budgets = _budgets(kv)
    if budgets is not None:
        keeping = budgets.keeping
        new = partial(QuestSelector, budgets) if keeping is None else partial(DroppingSelector, budgets, keeping)
        return PageSelection(new, budgets)
    if kv.attention == CERTIFIED:
        certificates = Certificates(kv.epsilon, SUMMARIES[kv.summary])
        return PageSelection(partial(CertifiedSelector, certificates), certificates)
    return None


def _budgets(kv: Kv) -> Budgets | None:
    """The budget of a mode that has one. Raises ConfigError for settings that the mode has no use for."""
    keeping = KEEPING.get(kv.attention)
    if keeping is None and kv.layers != "even":
        raise ConfigError(f'[kv] layers = "{kv.layers}" is for [kv] attention = {_list_modes(KEEPING)}; take it out')
    if keeping is None and kv.attention != QUEST:
        if kv.budget != "auto":
            raise ConfigError(
                f"[kv] budget = {kv.budget} is for [kv] attention = {_list_modes([*KEEPING, QUEST])}; take it out"
            )
        return None
    budget = parse_budget(SHARE if kv.budget == "auto" else kv.budget)
    if budget.tokens is not None and budget.tokens < LEAST * CHOSEN_TOKENS:
        raise ConfigError(f"[kv] budget = {kv.budget}: it is at least {LEAST * CHOSEN_TOKENS} tokens")
    return Budgets(budget, keeping, by_need=kv.layers == "by-need")


def _list_modes(modes: Iterable[str]) -> str:
    return ", ".join(f'"{mode}"' for mode in modes)
