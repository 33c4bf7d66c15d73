"""Bundles hold the bytes that they held before: a change here makes everybody pack again, and must be meant."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from penstock.runtime.checkpoints.built_model import BuiltModel
from penstock.runtime.checkpoints.meta_model import build_meta_model
from penstock.runtime.machine import drives
from penstock.runtime.packing.arrange.formats import Rules
from penstock.runtime.packing.pack import pack
from penstock.runtime.routing.profiling import experts_of
from penstock.runtime.routing.routes import RoutedLayer, Routes
from penstock.tiering.store.bundle.manifest import dump
from penstock.tiering.store.bundle.reader import Bundle
from penstock.tiering.units import MiB
from tests.support.whole_numbers import PAIRS, save_checkpoint, save_gguf, state_of

Make = Callable[[Path], Bundle]


def packed(kind: str, format_: str = "as-is", method: str | None = None) -> Make:
    def make(folder: Path) -> Bundle:
        source = save_checkpoint(kind, folder / "source", method)
        return pack(source, store=folder / "store", host_memory=32 * MiB, rules=Rules(format_))

    return make


def from_gguf(folder: Path) -> Bundle:
    return pack(save_gguf(folder / "llama.gguf"), store=folder / "store", host_memory=32 * MiB)


def wrapped(folder: Path) -> Bundle:
    config = AutoConfig.from_pretrained(save_checkpoint("llama", folder / "source"))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(state_of("llama"))
    return pack(BuiltModel.of(model), store=folder / "store")


def ordered(folder: Path) -> Bundle:
    source = save_checkpoint("qwen3_moe", folder / "source")
    model = build_meta_model(AutoConfig.from_pretrained(source), torch.bfloat16)
    used = np.array(PAIRS, dtype=np.uint8)[[1, 3, 0, 2, 2, 0, 1, 3] * 20]
    layers = tuple(RoutedLayer(path, count, used, None) for path, count in experts_of(model).items())
    routes = Routes("qwen3_moe", "pairs", layers, (len(used),), (len(used),))
    return pack(source, store=folder / "store", host_memory=32 * MiB, routes=routes)


def striped(folder: Path) -> Bundle:
    source = save_checkpoint("qwen3_moe", folder / "source")
    return pack(source, store=folder / "store", host_memory=32 * MiB, stripes=[folder / "b"])


CASES: Mapping[str, tuple[Make, str]] = {
    "as they are": (packed("llama"), "1ce267203a6e8da1078041aa7362e31e"),
    "experts": (packed("qwen3_moe"), "87bcdf1b395c97db90db2c28397f2fee"),
    "lossless": (packed("qwen3_moe", "lossless"), "dd6b1b80a6a0b53508ae0d902172eeab"),
    "int8": (packed("qwen3_moe", "int8"), "974892e03dd4ba91a9d26bf829b1bfaf"),
    "gptq": (packed("llama", method="gptq"), "62dcbd8fdca7de31d164e0dd13d51294"),
    "awq": (packed("qwen3_moe", method="awq"), "d3c05658ce3c514dc89d2b0f7a90cf83"),
    "fp8": (packed("qwen3_moe", method="fp8"), "22a69a65076f55fb3918e3f14df813ae"),
    "fp8 to int8": (packed("llama", "int8", method="fp8"), "e5374611bc78412117ea001477ffd2f1"),
    "gguf": (from_gguf, "21635f6ef10f9d51c6f0f42df98b10bf"),
    "a model in memory": (wrapped, "b71711753bb2ae92846d76dff275b6dc"),
    "experts in order of use": (ordered, "5bd87afa4d697775e58d76279757c484"),
    "two drives": (striped, "e3c3d9ebbbb73b66fc0b414fe9810c41"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bundle_holds_the_bytes_that_it_held(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data files, and of a bundle on one drive the manifest: that of stripes has their folders in it."""
    monkeypatch.setattr(drives, "drive_speed", lambda folder, *_, **__: {"store": 3000.0}.get(folder.name, 1000.0))
    make, expected = CASES[name]
    digest = hashlib.sha256()
    with make(tmp_path) as bundle:
        if not bundle.manifest.drives:
            assert dump(bundle.manifest) == (bundle.folder / "manifest.json").read_text()
            digest.update((bundle.folder / "manifest.json").read_bytes())
        for file in bundle.manifest.files:
            place = bundle.manifest.places(bundle.folder)[file.drive]
            digest.update((place / file.name).read_bytes())
    assert digest.hexdigest()[:32] == expected
