"""How long computing takes: measured on reference models, kept for this machine, and what follows for a model."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.runtime.machine import cachefile, timings
from penstock.runtime.machine.timings import Pulse, Timings
from penstock.runtime.planning import reference
from penstock.tiering.errors import DeviceModelError
from penstock.tiering.policy.trust import Doubt
from penstock.tiering.sim.devices import Drive
from penstock.tiering.units import MiB
from tests.support.timings import KEPT, MEASURED, TIMINGS


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def kept() -> Path:
    (file,) = cachefile.place("x").parent.glob("computing-*.json")
    return file


def test_reference_models_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in (("_DENSE", ((64, 1), (64, 3), (128, 1))), ("_EXPERTS", ((64, 1, 2), (128, 1, 4)))):
        monkeypatch.setattr(reference, name, small)
    monkeypatch.setattr(reference, "_WIDTH", 64)
    kernel_caches = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    for name in kernel_caches:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "drive"
    folder.mkdir()
    first = reference.timings_here(folder, 1)
    found = first.kept.timings
    assert not list(folder.iterdir()), "nothing is left on the drive"
    assert found.layer_warm <= found.layer_cold
    assert found.products.keys() == {"bfloat16", "float16", "float32"}
    monkeypatch.setattr(reference, "measure", lambda *_: pytest.fail("what is kept is measured again"))
    for name in kernel_caches:  # as in a process that has loaded no model yet
        monkeypatch.delenv(name)
    again = reference.timings_here(folder, 1)
    assert again.kept.measured.when >= first.kept.measured.when


def test_what_is_kept_is_of_this_machine_as_it_is_set_up() -> None:
    assert timings.load("auto") is None
    timings.keep(KEPT, "auto")
    assert timings.load("auto") == KEPT
    assert timings.load(7) is None


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ('"memory": 10000000000.0', '"memory": -1.0'),
        ('"memory": 10000000000.0', '"memory": 1e999'),
        ('"contention": 0.0', '"contention": 1.5'),
        ('"share": 1.0', '"share": 0.0'),
        ('"token": 0.0', '"token": "soon"'),
        ('"token": 0.0', '"tokens": 0.0'),
        ('"holds_for": "', '"holds_for": "another '),
        ('"version": 2', '"version": 1'),
        ('"products": {', '"products": {}, "others": {'),
        ('"bfloat16": {', '"int8": {'),
        ('"steps": 0.001', '"steps": 0.0'),
        ('"spread": 0.1', '"spread": 1e999'),
        ('"when": 1000000000.0', '"when": -1.0'),
        ('"doubts": []', '"doubts": ["cores", "cores", "cores", "cores"]'),
        ("}", ""),
    ],
)
def test_what_is_damaged_or_cannot_be_counts_as_none(written: str, instead: str) -> None:
    timings.keep(KEPT, "auto")
    text = kept().read_text()
    assert written in text
    kept().write_text(text.replace(written, instead, 1))
    assert timings.load("auto") is None


def test_a_dtype_has_the_speed_of_its_products() -> None:
    products = TIMINGS.products | {"float32": timings.ProductSpeeds(one=5e9, many=1e11)}
    own = TIMINGS.model_copy(update={"products": products, "overhead": 1e-3})
    assert own.memory_for("bfloat16", experts=True).bandwidth == 1e10
    assert own.memory_for("float32", experts=True).bandwidth == 5e9
    assert own.memory_for("float64", experts=True).bandwidth == 5e9
    assert own.memory_for("float32", experts=False).overhead == 0
    many = own.memory_for("float32", experts=True)
    assert many.seconds(MiB, 1000) == pytest.approx(1000 * MiB / 1e11)


def test_a_model_gets_of_a_drive_what_reference_models_got() -> None:
    experts, dense = (timings.Delivery(share=share, contention=lost) for share, lost in ((0.5, 0.1), (0.8, 0.2)))
    own = TIMINGS.model_copy(update={"delivery": experts, "dense_delivery": dense, "dense_contention": 0.4})
    drive = Drive(2e9, latency=1e-4, single=1e9)
    assert own.beside_cores(drive, experts=True) == Drive(1e9, latency=2e-4, single=5e8, contention=0.1)
    assert own.beside_cores(drive, experts=False) == Drive(1.6e9, latency=1.25e-4, single=8e8, contention=0.2)
    assert own.memory_for("bfloat16", experts=False).contention == 0.4
    assert own.memory_for("bfloat16", experts=True).contention == 0.0


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 40))
def test_a_layer_takes_longer_the_more_its_weights_push_out(one: int, other: int) -> None:
    own = TIMINGS.model_copy(update={"layer_warm": 1e-3, "layer_cold": 3e-3, "cold": 30 * MiB, "dense_layer": 2e-3})
    small, large = sorted((one, other))
    least, most = (own.layer_seconds(size, experts=True) for size in (small, large))
    assert 1e-3 <= least <= most <= 3e-3
    assert [own.layer_seconds(size * MiB, experts=True) for size in (0, 15, 30)] == pytest.approx([1e-3, 2e-3, 3e-3])
    assert own.layer_seconds(small, experts=False) == 2e-3


def test_numbers_that_no_machine_has_name_their_field() -> None:
    impossible = Timings.model_construct(**TIMINGS.model_dump() | {"products": TIMINGS.products, "contention": 2.0})
    with pytest.raises(DeviceModelError, match="contention"):
        impossible.memory_for("bfloat16", experts=True)


@pytest.mark.parametrize(
    ("look", "doubts", "memory", "token", "left"),
    [
        (Pulse(products=1.05e10, steps=0.95e-3), (), 1e10, 1e-3, 1.0),
        (Pulse(products=5e9, steps=2e-3), (), 5e9, 2e-3, 1.0),
        (Pulse(products=5e9, steps=1e-2), ("cores",), 1e10, 1e-3, 0.1),
        (Pulse(products=1e7, steps=1e-3), ("cores",), 1e10, 1e-3, 0.05),
        (Pulse(products=9e10, steps=1e-4), ("cores",), 1e10, 1e-3, 1.0),
    ],
)
def test_a_brief_look_corrects_what_is_kept_or_says_what_others_leave(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    look: Pulse,
    doubts: tuple[Doubt, ...],
    memory: float,
    token: float,
    left: float,
) -> None:
    kept = KEPT.model_copy(update={"timings": TIMINGS.model_copy(update={"token": 1e-3})})
    timings.keep(kept, 1)
    monkeypatch.setattr(reference, "take_pulse", lambda _: look)
    monkeypatch.setattr("penstock.runtime.machine.watch.doubts_of", lambda *_, **__: doubts)
    monkeypatch.setattr(reference, "measure", lambda *_: pytest.fail("measured anew"))
    found = reference.timings_here(tmp_path, 1)
    assert (found.kept.timings.memory, found.kept.timings.token) == pytest.approx((memory, token))
    assert found.left == pytest.approx(left)
    assert found.now.doubts == doubts
    assert timings.load(1) == found.kept, "what changed is kept"
    changed = reference.timings_here(tmp_path, 1)
    assert changed.kept.timings == found.kept.timings, "the same look changes nothing again"


@pytest.mark.parametrize("why", ["none is kept", "refuted", "doubtful and stale"])
def test_times_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if why != "none is kept":
        doubts: tuple[Doubt, ...] = ("cores",) if why == "doubtful and stale" else ()
        timings.keep(KEPT.model_copy(update={"measured": replace(MEASURED, doubts=doubts)}), 1)
    new = KEPT.model_copy(update={"measured": replace(MEASURED, when=2e9, seen=2e9)})
    monkeypatch.setattr(reference, "measure", lambda *_: new)
    assert reference.timings_here(tmp_path, 1, refuted=why == "refuted").kept == new == timings.load(1)


def test_times_measured_beside_others_replace_no_better_ones() -> None:
    doubtful = KEPT.model_copy(update={"measured": replace(MEASURED, doubts=("cores",))})
    timings.keep(doubtful, 1)
    assert timings.load(1) == doubtful, "better than nothing"
    timings.keep(KEPT, 1)
    timings.keep(doubtful, 1)
    assert timings.load(1) == KEPT


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_a_changed_machine_is_a_possible_one(faster: float, longer: float) -> None:
    extreme = TIMINGS.model_copy(update={"memory": 1e18, "dense_memory": 1e-6, "token": 1e6})
    changed = extreme.times(faster, longer)
    assert Timings.model_validate_json(changed.model_dump_json()) == changed
