"""Format "auto" on real models: what is packed, what is used, and what speaks against a choice."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import penstock
from penstock.kernels import native
from penstock.kernels.machine.read_rates import ReadRate
from penstock.runtime.loading import exact_choice
from penstock.runtime.loading.opening import ModelSource, find_bundle
from penstock.runtime.machine import exact_rates
from penstock.runtime.machine.exact_rates import ExactRates
from penstock.tiering.store.bundle.manifest_file import read_manifest
from penstock.tiering.units import MiB
from tests.support.timings import KEPT, measured
from tests.support.tiny_models import save_tiny

SLOW, FAST = 1e6, 1e12
"""Bytes per second of drives."""
SIZES = {"hidden_size": 256, "intermediate_size": 512}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "llama", torch.bfloat16, **SIZES)


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A described machine on which no model is small; call it to say how fast its drive is."""
    monkeypatch.setattr(exact_choice, "SMALL", 0)
    monkeypatch.setattr(exact_choice, "measure_exact", lambda *_: ExactRates(1e10, 1e9))
    monkeypatch.setattr("penstock.runtime.machine.timings.load", lambda *_: KEPT)
    speed = [SLOW]
    monkeypatch.setattr(
        "penstock.runtime.machine.drives.drive_rates", lambda *_, **__: measured([ReadRate(MiB, 1, speed[0])])
    )

    def be(found: float) -> None:
        speed[0] = found

    return be


def loaded(model: Path, store: Path, **settings: object) -> str:
    """The format that is used for ``model`` in little memory."""
    with penstock.load(model, store=store, **{"host_memory": "1MiB", **settings}) as made:
        return read_manifest(made.penstock.bundle).codec


def packed(store: Path) -> list[str]:
    """The formats of all bundles in ``store``."""
    return sorted(read_manifest(path.parent).codec for path in store.glob("*/manifest.json"))


def test_the_faster_format_is_packed_and_every_bit_is_kept(
    model: Path, tmp_path: Path, drive: Callable[[float], None]
) -> None:
    assert loaded(model, tmp_path / "slow") == "lossless"
    drive(FAST)
    assert loaded(model, tmp_path / "fast") == "as-is"
    tokens = torch.arange(5)[None]
    logits = []
    for store in ("slow", "fast"):
        with penstock.load(model, store=tmp_path / store, host_memory="1MiB") as made, torch.inference_mode():
            logits.append(made(tokens).logits)
    assert torch.equal(*logits)


def test_a_bundle_that_is_there_is_used(model: Path, tmp_path: Path, drive: Callable[[float], None]) -> None:
    store = tmp_path / "store"
    assert loaded(model, store) == "lossless"
    drive(FAST)
    assert loaded(model, store) == "lossless"
    assert packed(store) == ["lossless"]
    assert loaded(model, store, weights_format="as-is") == "as-is"
    assert packed(store) == ["as-is", "lossless"]
    assert loaded(model, store) == "as-is", "of two, the faster one"
    drive(SLOW)
    assert loaded(model, store) == "lossless"


def test_a_named_format_is_packed_though_another_bundle_is_there(
    model: Path, tmp_path: Path, drive: Callable[[float], None]
) -> None:
    assert loaded(model, tmp_path, weights_format="as-is") == "as-is"
    assert loaded(model, tmp_path) == "as-is"
    assert loaded(model, tmp_path, weights_format="lossless") == "lossless"


def test_what_was_begun_goes_on(
    model: Path, tmp_path: Path, drive: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr("penstock.runtime.packing.pack.write_bundle", interrupt)
        with pytest.raises(KeyboardInterrupt):
            loaded(model, tmp_path)
    drive(FAST)
    assert loaded(model, tmp_path) == "lossless"
    assert packed(tmp_path) == ["lossless"]


def test_wrapped_models_are_packed_in_the_faster_format(tmp_path: Path, drive: Callable[[float], None]) -> None:
    plain = AutoModelForCausalLM.from_pretrained(save_tiny("llama", tmp_path / "llama", torch.bfloat16, **SIZES))
    with penstock.wrap(plain, store=tmp_path / "b", host_memory="1MiB") as made:
        assert read_manifest(made.penstock.bundle).codec == "lossless"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_numbers_than_bfloat16_stay_as_they_are(
    tmp_path: Path, drive: Callable[[float], None], dtype: torch.dtype
) -> None:
    folder = save_tiny("llama", tmp_path / "llama", dtype, **SIZES)
    assert loaded(folder, tmp_path / "store") == "as-is"
    assert "bfloat16" in penstock.plan(folder, store=tmp_path / "other", host_memory="1MiB").exact.why


def test_without_compiled_kernels_nothing_is_decoded(
    model: Path, tmp_path: Path, drive: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "KERNELS", None)
    assert loaded(model, tmp_path) == "as-is"


def test_of_a_small_model_nothing_is_measured(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr(exact_choice, "measure_exact", refuse)
    assert loaded(model, tmp_path) == "as-is"


def test_a_drive_that_cannot_be_measured_is_no_error(
    model: Path, tmp_path: Path, drive: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise penstock.ConfigError("the drive is read-only")

    monkeypatch.setattr(exact_choice, "modelled", refuse)
    assert loaded(model, tmp_path) == "as-is"


def test_both_bundles_may_be_there_when_one_is_looked_for(
    model: Path, tmp_path: Path, drive: Callable[[float], None]
) -> None:
    loaded(model, tmp_path, weights_format="int8")
    loaded(model, tmp_path, weights_format="lossless")
    config = penstock.Config().override(store=tmp_path)
    assert read_manifest(find_bundle(ModelSource(model=str(model)), config)).codec == "lossless"


@pytest.mark.usefixtures("quick")
def test_plan_says_both_and_what_is_there(model: Path, tmp_path: Path, drive: Callable[[float], None]) -> None:
    settings = {"store": tmp_path / "store", "host_memory": "1MiB"}
    before = penstock.plan(model, **settings)
    exact = before.exact
    assert (exact.auto, exact.packed) == ("lossless", None)
    assert exact.tokens_per_second["lossless"] == pytest.approx(before.tokens_per_second)
    assert exact.tokens_per_second["as-is"] < exact.tokens_per_second["lossless"]
    assert before.to_dict()["exact"] == exact.to_dict()
    loaded(model, tmp_path / "store", weights_format="as-is")
    after = penstock.plan(model, **settings)
    assert (after.exact.auto, after.exact.packed) == ("lossless", "as-is")
    assert after.exact.tokens_per_second["as-is"] == pytest.approx(after.tokens_per_second)
    assert penstock.plan(model, **settings, weights_format="int8").exact is None


def test_rates_are_measured_on_the_cores() -> None:
    found = exact_rates.measure_exact()
    assert min(found) > 0
    assert found.of({"lossless"}) == found.lossless
    assert found.of({"int8"}) == found.as_is
