"""Which exact format "auto" is: what the drive and the decoder were measured to do decides."""

from pathlib import Path

import pytest

import penstock
from penstock.kernels.machine.read_rates import ReadRate
from penstock.runtime.config.settings import Weights
from penstock.runtime.packing import rules
from penstock.runtime.packing.rules import choose_rules
from tests.support.engines import engine_of
from tests.support.timings import measured
from tests.support.tiny_models import save_tiny


@pytest.fixture(autouse=True)
def _forget() -> None:
    rules.exact_format.cache_clear()


@pytest.mark.parametrize(
    ("drive", "decoding", "found"), [(3e9, 30e9, "lossless"), (3e9, 6e9, "as-is"), (20e9, 30e9, "as-is")]
)
def test_lossless_is_taken_where_decoding_outruns_the_drive(
    drive: float, decoding: float, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "drive_rates", lambda _: measured([ReadRate(1 << 20, 1, drive)]))
    monkeypatch.setattr(rules, "measure_decoding", lambda: decoding)
    assert choose_rules(Weights(format="auto"), tmp_path).format == found
    assert choose_rules(Weights(format="auto", experts="int4"), tmp_path).of("experts") == "int4-32"


def test_auto_loads_a_model_without_a_changed_bit(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "llama")
    with penstock.load(folder, store=tmp_path / "store", weights_format="auto") as model:
        assert engine_of(model).bundle.manifest.codec in ("as-is", "lossless")
