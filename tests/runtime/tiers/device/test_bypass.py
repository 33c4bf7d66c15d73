"""Blocks that stay on a device come from flash past the host tier: in pieces, or by the drive itself."""

import os
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import penstock
from penstock.kernels.devices.emulated import Emulated
from penstock.runtime.config.config import Config
from penstock.runtime.tiers.device import bypass
from penstock.tiering.units import PAGE

IDS = torch.tensor([[5, 9, 17]])


class Reaching(Emulated):
    """A device that drives reach: files are read into its memory. ``broken``: they say so, and cannot."""

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__()
        self.broken, self.read, self.closed = broken, list[int](), 0

    def direct_file(self, path: Path) -> "_File":  # type: ignore[override]
        return _File(self, path)


class _File:
    def __init__(self, device: Reaching, path: Path) -> None:
        self._device, self._descriptor = device, os.open(path, os.O_RDONLY)

    def read(self, into: torch.Tensor, offset: int) -> None:
        self._device.read.append(into.nbytes)
        if self._device.broken:
            raise OSError("no way through")
        assert os.preadv(self._descriptor, [memoryview(into.numpy())], offset) == into.nbytes

    def close(self) -> None:
        self._device.closed += 1
        os.close(self._descriptor)


@pytest.fixture(params=["in pieces", "by the drive", "by a drive that cannot"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Emulated:
    if request.param == "in pieces":
        monkeypatch.setattr(bypass, "STAGING", 4 * PAGE)  # many pieces
        device = Emulated()
    else:
        device = Reaching(broken="cannot" in request.param)

    def named(settings: Config) -> Emulated | None:
        return device if settings.compute.device == "emulated" else None

    monkeypatch.setattr("penstock.runtime.loading.load.open_device", named)
    return device


def load(folder: Path, store: Path) -> PreTrainedModel:
    return penstock.load(folder, store=store, device="emulated", device_memory="4MiB", host_memory="64KiB")


def test_what_stays_on_the_device_is_right(device: Emulated, tiny_dense_folder: Path, tmp_path: Path) -> None:
    with penstock.load(tiny_dense_folder, store=tmp_path, host_memory="4MiB") as model:
        expected = model(IDS).logits
    with load(tiny_dense_folder, tmp_path) as model:
        assert not model.penstock.device_placement.streamed
        assert torch.equal(model(IDS).logits, expected)
        placement, stats = model.penstock.device_placement, model.penstock.stats()
        assert stats.flash_bytes_read == placement.resident_bytes + placement.pinned_bytes == sum(stats.drive_bytes)
        assert stats.host_bytes == 0, "the host tier is not used"
    if isinstance(device, Reaching):
        assert sum(device.read) == stats.flash_bytes_read
        assert device.closed == 1
        assert bool(stats.bytes_copied) == device.broken


@pytest.mark.usefixtures("device")
def test_a_damaged_block_is_named(tiny_dense_folder: Path, tmp_path: Path) -> None:
    with penstock.load(tiny_dense_folder, store=tmp_path, host_memory="4MiB") as model:
        bundle = model.penstock.bundle
    with next(bundle.glob("*.bin")).open("r+b") as file:
        file.seek(3 * PAGE + 7)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(penstock.BundleCorrupt, match="altered"):
        load(tiny_dense_folder, tmp_path)
