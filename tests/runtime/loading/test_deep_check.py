"""What ``verify --deep`` finds in a bundle whose author made every checksum right."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock.runtime.loading.deep_check import check_deep
from penstock.tiering.store.bundle.manifest import Block, TensorSpec
from penstock.tiering.store.bundle.reader import Bundle
from tests.support.forged_bundles import forge
from tests.support.tiny_models import save_tiny

Change = Callable[[TensorSpec, bytearray], None]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles by their format."""
    folder = tmp_path_factory.mktemp("bundles")
    found: dict[str, Path] = {}
    for format_, model in (("as-is", "gpt2"), ("stacked", "qwen3_moe"), ("lossless", "llama"), ("int4", "llama")):
        sizes = {} if model == "gpt2" else {"hidden_size": 128}
        checkpoint = save_tiny(model, folder / f"{model}-{format_}", torch.bfloat16, **sizes)
        store = folder / f"store-{format_}"
        with penstock.load(checkpoint, store=store, host_memory="64MiB", weights_format=format_) as loaded:
            found[format_] = loaded.penstock.bundle
    return found


@pytest.fixture
def copy(honest: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda format_: Path(shutil.copytree(honest[format_], tmp_path / honest[format_].name))


def encoded(block: Block, spec: TensorSpec) -> bool:
    return spec.packing is not None


def weight(block: Block, spec: TensorSpec) -> bool:
    return spec.packing is None and "ln_f.weight" in spec.name


def fill(value: int) -> Change:
    def change(_: TensorSpec, content: bytearray) -> None:
        content[:] = bytes([value]) * len(content)

    return change


@pytest.mark.parametrize("format_", ["as-is", "stacked", "lossless", "int4"])
def test_an_honest_bundle_has_nothing(honest: dict[str, Path], format_: str) -> None:
    with Bundle.open(honest[format_]) as bundle:
        assert bundle.verify() == []
        assert check_deep(bundle) == []


@pytest.mark.parametrize(
    ("format_", "wanted"),
    [("as-is", weight), ("stacked", encoded), ("int4", encoded)],
    ids=lambda value: str(value)[:8],
)
def test_numbers_that_are_none_are_named(copy: Callable[[str], Path], format_: str, wanted: Any) -> None:
    folder = copy(format_)
    changed = forge(folder, fill(0xFF), wanted)
    with Bundle.open(folder) as bundle:
        assert bundle.verify() == []
        found = list(map(str, check_deep(bundle)))
    names = {spec.name for _, spec in changed}
    assert found
    assert all("holds no numbers in " in line and "pack again" in line for line in found)
    assert {line.split("no numbers in ")[1].split(":")[0] for line in found} == names


def test_the_command_says_what_is_wrong(run: Any, copy: Callable[[str], Path]) -> None:
    folder = copy("int4")
    code, out, _ = run("verify", folder, "--deep")
    assert code == 0
    assert "every number finite" in out
    forge(folder, fill(0xFF), lambda block, spec: spec.name == "lm_head.weight")
    assert run("verify", folder)[0] == 0
    code, out, err = run("verify", folder, "--deep")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "lm_head.weight" in err
    code, out, _ = run("verify", folder, "--deep", "--json")
    assert (code, json.loads(out)["intact"]) == (1, False)
