"""The identity of a model: everything that its keys and values depend on, besides the tokens.

A model that differs in any of it must not find a stored prefix. What can change after loading is added by
``identity/live_identity.py``."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

from .identity.configs import describe_config, to_json


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
    return {
        "config": describe_config(config),
        "attention": config._attn_implementation,
        "experts": getattr(config, "_experts_implementation", None),
        "weights": weights,
        "dtype": dtype,
        "paged": to_json(paged),
        "device": to_json(device),
        "libraries": [torch.__version__, transformers.__version__, torch.backends.cpu.get_cpu_capability()],
        "threads": torch.get_num_threads(),
        "byteorder": sys.byteorder,
    }
