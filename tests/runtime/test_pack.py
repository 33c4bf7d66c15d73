"""Packing: a bundle holds, bit for bit, what transformers loads."""

from pathlib import Path

import pytest
import torch
from penstock.runtime.pack import pack
from penstock.tiering.units import MiB
from transformers import AutoModelForCausalLM

from ..bundles import tensors_of
from ..tiny_models import NAMES, save_tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_bundle_equals_what_transformers_loads(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "checkpoint", dtype)
    with pack(source, store=tmp_path / "store", host_memory=32 * MiB) as bundle:
        expected = AutoModelForCausalLM.from_pretrained(source).state_dict()
        found = tensors_of(bundle)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert found[key].dtype == tensor.dtype, key
            assert torch.equal(found[key], tensor), key
