"""What keys and values of a model depend on, besides the tokens: whoever differs in any of it must find nothing."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

_VOLATILE = {"_name_or_path", "name_or_path", "transformers_version", "use_cache", "output_attentions",
             "output_hidden_states", "return_dict", "architectures"}  # fmt: skip
"""Keys of a configuration that say nothing about numbers."""


def identity_of(
    config: PreTrainedConfig,
    *,
    weights: str,
    dtype: str,
    paged: Mapping[str, object] | None = None,
    device: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """The identity of a model, for JSON.

    ``weights`` is a digest of the weights and of the format they are stored in, ``paged`` says how attention looks at
    pages, if KV is in pages, ``device`` what computes and how, if not the CPU. RoPE and the layers are in ``config``;
    how attention and experts are computed is part of the identity too, and so are the libraries and the threads that do
    it, since all of these change last bits.
    """
    described = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE}
    return {
        "config": _plain(described),
        "attention": config._attn_implementation,
        "experts": getattr(config, "_experts_implementation", None),
        "weights": weights,
        "dtype": dtype,
        "paged": _plain(paged),
        "device": _plain(device),
        "libraries": [torch.__version__, transformers.__version__, torch.backends.cpu.get_cpu_capability()],
        "threads": torch.get_num_threads(),
        "byteorder": sys.byteorder,
    }


def _plain(value: Any) -> Any:
    """``value`` as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
