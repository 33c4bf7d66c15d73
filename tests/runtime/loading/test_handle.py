"""``penstock.handle``: what a model of penstock has besides what transformers gave it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import penstock
from tests.support.tiny_models import tiny_config


def test_the_handle_of_a_model(tiny_dense_folder: Path, store: Path):
    with penstock.load(tiny_dense_folder, store=store) as model:
        handle = penstock.handle(model)
        assert isinstance(handle, penstock.Handle)
        assert handle is model.penstock
        assert isinstance(handle.stats(), penstock.Stats)
    plain = AutoModelForCausalLM.from_config(tiny_config("llama"), dtype=torch.float32)
    with pytest.raises(penstock.ConfigError, match=r"LlamaForCausalLM is no model of penstock.*penstock\.load"):
        penstock.handle(plain)
