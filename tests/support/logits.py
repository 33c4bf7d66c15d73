"""Logits to compare bit for bit, and the least budget of a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import penstock

IDS = torch.randint(3, 300, (2, 17), generator=torch.Generator().manual_seed(1))
"""A prompt of two rows."""


def logits(model: PreTrainedModel, steps: int = 4) -> list[torch.Tensor]:
    """Logits of a prompt of two rows, and of ``steps`` tokens decoded one by one."""
    with torch.no_grad():
        out = model(IDS, use_cache=True)
        found = [out.logits]
        for step in range(steps):
            out = model(IDS[:, step : step + 1], past_key_values=out.past_key_values, use_cache=True)
            found.append(out.logits)
    return found


def least_budget(folder: Path, store: Path, **options: Any) -> int:
    """The least ``host_memory`` in bytes with which the model in ``folder`` loads with these ``options``."""
    with pytest.raises(penstock.BudgetTooSmall, match=r"at least (\d+) bytes") as caught:
        penstock.load(folder, store=store, host_memory=1, **options)
    return int(str(caught.value).split("at least ")[1].split()[0])
