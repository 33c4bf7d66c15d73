"""A bundle with right checksums and matrices that lead astray: no model computes with it, on the host or a device."""

from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock.tiering.store.bundle.manifest import TensorSpec
from tests.support.forged_bundles import forge
from tests.support.tiny_models import save_tiny

IDS = torch.tensor([[5, 9, 17]])
HOST: dict[str, Any] = {"host_memory": "4MiB"}
DEVICE: dict[str, Any] = {"device": "emulated", "device_memory": "4MiB", "host_memory": "64KiB"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen3_moe", tmp_path_factory.mktemp("forged") / "model", torch.bfloat16)


def end_elsewhere(spec: TensorSpec, plane: bytearray) -> None:
    """The last tile ends a MiB later, far outside of the plane."""
    assert spec.packing is not None
    at = 8 * (spec.shape[int(spec.packing.transposed)] // 16 - 1)
    end = int.from_bytes(plane[at : at + 8], "little")
    assert end <= len(plane)
    plane[at : at + 8] = (end + (1 << 20)).to_bytes(8, "little")


@pytest.mark.parametrize("memory", [HOST, DEVICE], ids=["host", "device"])
def test_it_is_refused_with_file_block_and_tensor(memory: dict[str, Any], checkpoint: Path, tmp_path: Path) -> None:
    options = {"store": tmp_path, "weights_format": "lossless", **memory}
    with penstock.load(checkpoint, **options) as model:
        bundle = model.penstock.bundle
        model(IDS)
    assert forge(bundle, end_elsewhere, lambda _, spec: spec.packing is not None)
    with (
        pytest.raises(penstock.BundleCorrupt, match=r"data-00000.bin: block .* holds no matrix in .*weight"),
        penstock.load(checkpoint, **options) as model,
    ):
        model(IDS)
