"""The identity of a model: everything that its keys and values depend on, besides the tokens.

A model that differs in any of it must not find a stored prefix."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

_VOLATILE = {"_name_or_path", "name_or_path", "transformers_version", "use_cache", "output_attentions",
             "output_hidden_states", "return_dict", "architectures"}  # fmt: skip
"""Keys of a configuration that do not change keys and values."""


def describe_identity(
    config: PreTrainedConfig,
    *,
    weights: str,
    dtype: str,
    paged: Mapping[str, object] | None = None,
    device: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """The identity of a model, for JSON.

    ``weights`` is a digest of the weights and of their stored format. ``paged`` are the settings of attention on pages,
    if KV is in pages. ``device`` is the device and the way it computes, if it is not the CPU. RoPE and the layers are
    in ``config``. The implementations of attention and experts, the libraries and the number of threads are part of the
    identity too: all of these change last bits.
    """
    described = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE}
    return {
        "config": _to_json(described),
        "attention": config._attn_implementation,
        "experts": getattr(config, "_experts_implementation", None),
        "weights": weights,
        "dtype": dtype,
        "paged": _to_json(paged),
        "device": _to_json(device),
        "libraries": [torch.__version__, transformers.__version__, torch.backends.cpu.get_cpu_capability()],
        "threads": torch.get_num_threads(),
        "byteorder": sys.byteorder,
    }


def _to_json(value: Any) -> Any:
    """``value`` in the types of JSON."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
