"""Describes transformers' configurations for JSON, without what does not change keys and values."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

_VOLATILE = {"_name_or_path", "name_or_path", "transformers_version", "use_cache", "output_attentions",
             "output_hidden_states", "return_dict", "architectures"}  # fmt: skip
"""Keys of a configuration that do not change keys and values."""


def describe_config(config: PreTrainedConfig) -> Any:
    """``config``, and those inside of it, in the types of JSON."""
    return to_json(config.to_dict())


def to_json(value: Any) -> Any:
    """``value`` in the types of JSON; the keys of mappings that do not change keys and values are left out."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
