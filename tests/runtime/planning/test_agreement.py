"""Plan and load arrange a model alike: one function decides, and both give it the same numbers."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock.sim import Arrangement, recorded
from penstock.tiering.units import KiB
from tests.support.tiny_models import save_tiny

pytestmark = pytest.mark.usefixtures("elsewhere", "quick")

TIGHT: dict[str, Any] = {"host_memory": 400 * KiB, "io_backend": "threads", "io_depth": 3}
DEVICE: dict[str, Any] = {"device": "emulated", "device_memory": 300 * KiB, "host_memory": 300 * KiB}
KV: dict[str, Any] = {"host_memory": 2 << 20, "kv_host_memory": 1 << 20}

CASES: dict[str, dict[str, Any]] = {
    "plenty": {},
    "tight": TIGHT | {"experts_eviction": "lru", "experts_prefetch": "off"},
    "a written floor": TIGHT | {"host_memory_floor": 390 * KiB},
    "no floor": TIGHT | {"host_memory_floor": 400 * KiB},
    "KV": KV | TIGHT | {"host_memory": 700 * KiB, "kv_host_memory": 300 * KiB},
    "KV and a written floor": KV
    | {"host_memory": 700 * KiB, "kv_host_memory": 256 * KiB, "host_memory_floor": "680KiB"},
    "a device": DEVICE,
    "a device with KV": DEVICE | {"device_memory": 500 * KiB, "host_memory": "1MiB", "kv_host_memory": "512KiB"},
    "a device with KV and a floor": DEVICE
    | {"host_memory": "1MiB", "kv_host_memory": "512KiB", "kv_device_memory": 0, "host_memory_floor": "900KiB"},
    "int8": TIGHT | {"weights_format": "int8"},
    "nested, full": TIGHT | {"weights_format": "nested", "weights_quality": "full"},
    "nested, adaptive": TIGHT | {"weights_format": "nested", "weights_quality": "adaptive"},
    "nested, base": TIGHT | {"weights_format": "nested", "weights_quality": "base", "host_memory_floor": "350KiB"},
    "lossless": TIGHT | {"weights_format": "lossless"},
    "drives": TIGHT | {"store_stripes": ["b", "c"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(
        "qwen3_moe", tmp_path_factory.mktemp("moe"), torch.bfloat16, hidden_size=128, moe_intermediate_size=128
    )


def differences(one: Arrangement | None, other: Arrangement) -> list[str]:
    """The fields in which two arrangements differ."""
    assert one is not None, "it fits"
    return [field.name for field in fields(other) if getattr(one, field.name) != getattr(other, field.name)]


@pytest.mark.parametrize("name", CASES)
def test_plan_and_load_arrange_memory_alike(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("penstock.kernels.devices.measure.measure_bus", lambda _: (1e8, True))
    monkeypatch.setattr("penstock.runtime.machine.drives.drive_under", str)  # as if each folder were a drive
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no other test measures this drive meanwhile
    settings = {"store": tmp_path / "store"} | CASES[name]
    before = penstock.plan(folder, **settings)
    with penstock.load(folder, record=tmp_path / "run.penrec", **settings) as model:
        used = penstock.handle(model).arrangement
        stats = penstock.handle(model).stats()
        bundle = penstock.handle(model).bundle
    for source in (folder, bundle):
        assert differences(penstock.plan(source, **settings).arrangement, used) == []
    if name != "lossless":  # how long that gets depends on the numbers
        assert differences(before.arrangement, used) == []
    assert (stats.host_floor, stats.host_budget) == (used.floor, used.budgets.host)
    assert recorded(tmp_path / "run.penrec").setup == used.host_setup, "what is simulated is what ran"


def test_a_written_floor_is_shared_by_weights_and_kv(folder: Path, tmp_path: Path):
    settings = {"store": tmp_path / "store"} | CASES["KV and a written floor"]
    found = penstock.plan(folder, **settings)
    arrangement = found.arrangement
    assert arrangement is not None
    assert found.host_memory_floor == arrangement.floor
    assert arrangement.divisions.floor == pytest.approx(680 * KiB * (700 - 256) / 700, abs=1)
    assert arrangement.budgets.kv_floor == pytest.approx(680 * KiB * 256 / 700, abs=1)


def test_plan_refuses_what_load_refuses_for_the_same_reason(folder: Path, tmp_path: Path):
    settings = {"store": tmp_path / "store"} | KV | {"host_memory": "1100KiB"}
    found = penstock.plan(folder, **settings)
    assert not found.fits
    with pytest.raises(penstock.BudgetTooSmall, match=r"takes 1\.00 MiB of host_memory besides") as refused:
        penstock.load(folder, **settings)
    assert str(refused.value) in found.notes
