"""Drafts are checked several rows at a time, and whoever asks for them is told that the text may differ."""

import warnings
from pathlib import Path

import pytest
import torch

import penstock
from tests.support.tiny_models import save_tiny

IDS = torch.randint(3, 300, (1, 20), generator=torch.Generator().manual_seed(1))
LOOKUP = {"max_new_tokens": 3, "do_sample": False, "prompt_lookup_num_tokens": 2}


@pytest.mark.parametrize(
    ("dtype", "wide", "warned"),
    [(torch.float32, 96, True), (torch.bfloat16, 96, False), (torch.bfloat16, 2048, True)],
)
def test_a_warning_where_rows_are_summed_otherwise(dtype: torch.dtype, wide: int, warned: bool, tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model", dtype, intermediate_size=wide)
    with penstock.load(folder, store=tmp_path, host_memory="64MiB") as model:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            model.generate(IDS, max_new_tokens=3, do_sample=False)
            assert not any("plain decoding" in str(each.message) for each in found)
            model.generate(IDS, **LOOKUP)
        assert any("plain decoding" in str(each.message) for each in found) == warned
