"""A bundle whose manifest is whole and signed, and says something else than the model needs, is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock.tiering.errors import BundleError
from penstock.tiering.store.bundle.manifest import encode, signed
from tests.support.logits import logits
from tests.support.tiny_models import save_tiny

Document = dict[str, Any]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts in three planes each, its dense matrices in bytes, its output tied to its embeddings."""
    folder = tmp_path_factory.mktemp("checkpoint") / "moe"
    save_tiny("qwen3_moe", folder, torch.bfloat16, tie_word_embeddings=True, hidden_size=128, moe_intermediate_size=128)
    store = tmp_path_factory.mktemp("store")
    with penstock.load(folder, store=store, host_memory="64MiB", weights_format="stacked") as model:
        bundle: Path = model.penstock.bundle
    return bundle


@pytest.fixture
def bundle(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / honest.name))


def change(bundle: Path, by: Callable[[Document], None]) -> None:
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    by(document)
    path.write_text(encode(signed(document)))


def load(bundle: Path) -> Any:
    return penstock.load(bundle, host_memory="64MiB")


def drop(document: Document, wanted: Callable[[Document], bool]) -> None:
    """Take the last block that is ``wanted`` out, with its bytes: what lies behind it moves."""
    blocks = document["blocks"]
    number = max(n for n, block in enumerate(blocks) if wanted(block))
    file, _, length = blocks.pop(number)["extent"]
    for block in blocks[number:]:
        if block["extent"][0] == file:
            block["extent"][1] -= length
    document["files"][file]["length"] -= length


def encoded(document: Document, kind: str) -> list[Any]:
    """The first encoded tensor of a block of ``kind``."""
    found: list[Any] = next(
        tensor
        for block in document["blocks"]
        for tensor in block["tensors"]
        if block["id"][0] == kind and len(tensor) == 6
    )
    return found


def relabel(kind: str, place: int, value: Any) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        encoded(document, kind)[5][place] = value

    return change


def untie(document: Document) -> None:
    document["tied"] = {}


def tie_otherwise(document: Document) -> None:
    document["tied"] = dict.fromkeys(document["tied"], "model.norm.weight")


def stay_not(document: Document) -> None:
    next(block for block in document["blocks"] if block["resident"])["resident"] = False


def swap_names(document: Document) -> None:
    """Two matrices of equal shape in the place of each other."""
    blocks = {block["id"][1]: block for block in document["blocks"] if block["id"][0] == "dense"}
    one, other = (blocks[f"model.layers.0.self_attn.{name}_proj"] for name in "kv")
    one["tensors"], other["tensors"] = other["tensors"], one["tensors"]


def drop_expert(document: Document) -> None:
    drop(document, lambda block: block["id"][0] == "residual")
    drop(document, lambda block: block["id"][0] == "residual")
    drop(document, lambda block: block["id"][0] == "expert")


CHANGES = {
    "the last plane is gone": lambda d: drop(d, lambda block: block["id"][0] == "residual"),
    "an expert is gone": drop_expert,
    "a module is gone": lambda d: drop(d, lambda block: "q_proj" in block["id"][1]),
    "nothing is tied": untie,
    "something else is tied": tie_otherwise,
    "what stays does not": stay_not,
    "names are swapped": swap_names,
    "an unknown format": relabel("dense", 0, "int9"),
    "another format": relabel("dense", 0, "lossless"),
    "a format of another length": relabel("dense", 0, "int4-32"),
    "the other side": relabel("dense", 2, True),
    "a lossless dtype": lambda d: d.update(dtype="float16"),
    "a dtype that is none": lambda d: d.update(dtype="nn"),
}


def test_the_honest_bundle_loads(honest: Path) -> None:
    with load(honest) as model:
        assert logits(model)[0].isfinite().all()


@pytest.mark.parametrize("what", CHANGES)
def test_what_the_model_does_not_need_is_refused(bundle: Path, what: str) -> None:
    change(bundle, CHANGES[what])
    with pytest.raises(BundleError, match=str(bundle)) as caught:
        load(bundle)
    assert "pack again" in str(caught.value) or what == "a dtype that is none"
    with pytest.raises(BundleError, match=str(bundle)):
        penstock.plan(bundle)
