"""A small model that drafts for the one that is tested."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny_models import shake, tiny_config

from ..side import Side


def assistant_of(side: Side) -> Any:
    """A model with the vocabulary of ``side``'s, in memory, the same on both sides."""
    if side.assistant is None:
        torch.manual_seed(5)
        config = tiny_config("llama", num_hidden_layers=1, vocab_size=side.vocabulary)
        side.assistant = AutoModelForCausalLM.from_config(config, dtype=side.base.dtype).eval()
        shake(side.assistant)
    return side.assistant
