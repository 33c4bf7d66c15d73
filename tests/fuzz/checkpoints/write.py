"""Writes the checkpoint of a model spec."""

import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from tests.support.tiny_models import shake

from ..architectures import config_of
from ..model_spec import SHAPES, ModelSpec
from .own_code import give_own_code
from .quantised import QUANTISED
from .spare_entry import add_spare_entry

SHARD = "100KB"


class Written(NamedTuple):
    """``checkpoint`` is what Penstock loads. ``plain`` has the same numbers, for transformers."""

    checkpoint: Path
    plain: Path


def write(spec: ModelSpec, folder: Path) -> Written:
    """Write the checkpoint of ``spec`` into a new ``folder``."""
    torch.manual_seed(0)
    if spec.quantised != "no":
        pair = QUANTISED[spec.quantised](folder, spec.architecture)
        shutil.copy(pair.plain / "generation_config.json", pair.quantised)
        return Written(pair.quantised, pair.plain)
    config = config_of(spec.architecture, SHAPES[spec.shape])
    model = spec.auto_class.from_config(config, dtype=getattr(torch, spec.dtype))
    shake(model)
    sharded = spec.written in ("shards", "spare entry")
    model.save_pretrained(folder, max_shard_size=SHARD if sharded else "5GB")
    if spec.written == "spare entry":
        add_spare_entry(folder)
    elif spec.written == "own code":
        give_own_code(folder, type(model))
    return Written(folder, folder)
