"""How much memory KV gets, from the settings of a model."""

from typing import Any

from ....tiering.errors import ConfigError
from ....tiering.kv.page_size import LARGE, OPEN
from ....tiering.policy.placement.memory_split import least_kv
from ....tiering.policy.placement.placement import with_working_memory
from ....tiering.units import MiB, format_size
from ...config.config import Config
from ...config.settings import Kv

LEAST_PASSING = 32 * MiB
"""Bytes of host memory a quarter of which lets pages pass through without the drive waiting."""


def kv_device_bytes(settings: Config, weights: int) -> int:
    """Bytes of the device's memory for KV, beside ``weights`` bytes of weights: as written, or for "auto" what the
    weights leave of [memory] device, if that is written. Raises ConfigError where attention would not use them."""
    kv = settings.kv
    strange = [key for key in ("attention", "format") if getattr(kv, key) != Kv.model_fields[key].default]
    if kv.device == "auto":
        if settings.memory.device == "auto" or settings.kv_host is None or strange:
            return 0
        return max(0, settings.memory.device - with_working_memory(weights))
    if not kv.device:
        return 0
    size = format_size(kv.device)
    if settings.compute.device in ("auto", "cpu"):
        raise ConfigError(f"[kv] device = {size} is for a device; name it in [compute] device")
    if settings.kv_host is None:
        raise ConfigError(f"[kv] device = {size} is for KV in pages; set [kv] host, the memory for those below")
    if strange:
        raise ConfigError(
            f'[kv] device = {size} is for [kv] attention = "exact" on pages as they are; take it out, or [kv] '
            f'{strange[0]} = "{getattr(kv, strange[0])}"'
        )
    return kv.device


def least_kv_host(kv_host: int, model: Any) -> int:
    """The bytes of ``kv_host`` that KV of a model with the configuration ``model`` needs at the least."""
    return least_kv(kv_host, min(2 * LARGE * count_layers(model), int(OPEN * kv_host)), LEAST_PASSING)


def count_layers(model: Any) -> int:
    """Layers of a model with the configuration ``model``, about."""
    return getattr(model.get_text_config(decoder=True), "num_hidden_layers", 1)
