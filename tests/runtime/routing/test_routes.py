"""Routing traces on disk: what goes in comes out, and nothing damaged, foreign or empty does."""

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file

from penstock.runtime.routing import routes as module
from penstock.runtime.routing.routed import RoutedLayer, decode, encode
from penstock.runtime.routing.routes import Routes
from penstock.tiering.errors import TraceError
from tests.support.routes import made_up


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "trace.safetensors"
    made_up(12, sequences=(7, 5)).save(path)
    return path


@pytest.mark.parametrize("experts", [8, 255, 256, 300])
def test_what_is_saved_is_loaded(tmp_path: Path, experts: int) -> None:
    routes = made_up(12, experts=experts, sequences=(7, 5))
    without = replace(routes.layers[1], codes=None)
    routes = replace(routes, layers=(routes.layers[0], without))
    routes.save(tmp_path / "trace")
    loaded = Routes.load(tmp_path / "trace")
    assert replace(loaded, layers=()) == replace(routes, layers=())
    for layer, expected in zip(loaded.layers, routes.layers, strict=True):
        assert (layer.path, layer.experts, layer.top_k) == (expected.path, expected.experts, expected.top_k)
        assert layer.chosen.dtype == (np.uint8 if experts < 256 else np.uint16)
        np.testing.assert_array_equal(layer.chosen, expected.chosen)
    np.testing.assert_array_equal(loaded.layers[0].codes, routes.layers[0].codes)
    assert loaded.layers[1].probabilities() is None


def test_only_its_owner_can_read_it(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@given(arrays.arrays(np.float32, 20, elements=st.floats(2**-15, 1, width=32)))
def test_a_probability_is_kept_to_a_fiftieth(probabilities: np.ndarray) -> None:
    np.testing.assert_allclose(decode(encode(probabilities)), probabilities, rtol=0.022)


def test_a_probability_of_nothing_counts_as_little() -> None:
    assert decode(encode(np.zeros(1, dtype=np.float32))) == pytest.approx(2 ** (-255 / 16))


def test_steps_are_the_experts_of_each_token() -> None:
    routes = made_up(5)
    steps = list(routes.steps())
    assert len(steps) == 5
    for token, step in enumerate(steps):
        for layer, blocks in zip(routes.layers, step, strict=True):
            assert [block.part for block in blocks] == sorted(layer.chosen[token].tolist())
            assert {(block.kind, block.module) for block in blocks} == {("expert", layer.path)}
            assert np.flatnonzero(layer.used()[token]).tolist() == [block.part for block in blocks]


def test_no_expert_is_none() -> None:
    routes = made_up(3, layers=1)
    routes.layers[0].chosen[1] = 8
    assert list(routes.steps())[1] == [()]
    assert not routes.layers[0].used()[1].any()


# --- damage ---


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.6, 0.999])
def test_a_truncated_trace_is_refused(path: Path, part: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(TraceError, match=r"trace.safetensors is a truncated or damaged .* record it again"):
        Routes.load(path)


def test_no_byte_can_change(path: Path) -> None:
    content = path.read_bytes()
    before = Routes.load(path)
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            after = Routes.load(path)
        except TraceError:
            continue
        # Only what pads the header may change: safetensors fills it up with blanks.
        assert content[place] == 0x20, f"byte {place} changed and was not missed"
        assert after._about() == before._about()


@pytest.mark.parametrize("about", ["[" * 100_000, "NaN", "7", "[]", "null", "{}", '{"layers":[],"layers":[]}'])
def test_a_description_that_is_none_is_refused(path: Path, about: str) -> None:
    tensors = Routes.load(path)._tensors()
    header = {"format": module.FORMAT, "version": module.VERSION, "about": about}
    save_file(tensors, path, header | {"checksum": module._checksum(about, tensors)})
    with pytest.raises(TraceError, match="damaged"):
        Routes.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors | {"forwards": tensors["forwards"].astype(np.int64)},
        lambda tensors: tensors | {"forwards": tensors["forwards"].reshape(1, -1)},
        lambda tensors: tensors | {"sequences": tensors["sequences"][:0]},
        lambda tensors: tensors | {"chosen.0": tensors["chosen.0"].astype(np.float32)},
        lambda tensors: tensors | {"chosen.0": np.full_like(tensors["chosen.0"], 255)},
        lambda tensors: tensors | {"chosen.9": tensors["chosen.0"]},
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "sequences"},
    ],
)
def test_arrays_of_another_kind_are_refused(path: Path, change) -> None:
    routes = Routes.load(path)
    about, tensors = json.dumps(routes._about()), change(routes._tensors())
    header = {"format": module.FORMAT, "version": module.VERSION, "about": about}
    save_file(tensors, path, header | {"checksum": module._checksum(about, tensors)})
    with pytest.raises(TraceError, match="damaged"):
        Routes.load(path)


def test_more_experts_than_any_table_holds_are_refused(tmp_path: Path) -> None:
    """A small file would make a table of its tokens times its experts."""
    tokens, experts = 100_000, 60_000
    layer = RoutedLayer("m", experts, np.zeros((tokens, 1), np.uint16), None)
    Routes("moe", "t", (layer,), (tokens,), (tokens,)).save(tmp_path / "trace")
    with pytest.raises(TraceError, match="more than a trace may have"):
        Routes.load(tmp_path / "trace")


@pytest.mark.parametrize("what", ["pipe", "device"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, what: str) -> None:
    place = tmp_path / "trace"
    os.mkfifo(place) if what == "pipe" else place.symlink_to("/dev/zero")
    with pytest.raises(TraceError, match="it is not a regular file"):
        Routes.load(place)


def altered(path: Path, **changes: object) -> None:
    """Write the trace with changes to its description, and a checksum that fits."""
    routes = Routes.load(path)
    about, tensors = json.dumps(routes._about() | changes), routes._tensors()
    checksum = module._checksum(about, tensors)
    header = {"format": module.FORMAT, "version": module.VERSION, "about": about, "checksum": checksum}
    save_file(tensors, path, header)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": []},
        {"layers": None},
        {"layers": [{"path": "a", "experts": 8, "top_k": 3}]},
        {"layers": [{"path": "a", "experts": 2, "top_k": 2}]},
        {"layers": [{"path": "a", "experts": 9, "top_k": 2}]},
        {"layers": [{"experts": 8, "top_k": 2}]},
        {"layers": "abc"},
        {"layers": [7]},
        {"text": 7},
        {"model_type": None},
        {"more": 1},
    ],
)
def test_parts_that_do_not_belong_together_are_refused(path: Path, changes: dict[str, object]) -> None:
    altered(path, **changes)
    with pytest.raises(TraceError, match="damaged"):
        Routes.load(path)


def test_another_version_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VERSION", "2")
    with pytest.raises(TraceError, match=r"version 1, this penstock reads version 2; record it again"):
        Routes.load(path)


def test_another_kind_of_file_is_refused(path: Path) -> None:
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(TraceError, match="is no routing trace"):
        Routes.load(path)


@pytest.mark.parametrize("name", ["absent", "."])
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        Routes.load(tmp_path / name)


def test_an_empty_trace_is_refused(tmp_path: Path) -> None:
    routes = made_up(1)
    layers = tuple(replace(layer, chosen=layer.chosen[:0], codes=None) for layer in routes.layers)
    replace(routes, layers=layers, forwards=(), sequences=()).save(tmp_path / "trace")
    with pytest.raises(TraceError, match="without a token; record a longer text"):
        Routes.load(tmp_path / "trace")


# --- of which model ---


def test_the_model_it_was_recorded_with_is_accepted(path: Path) -> None:
    routes = Routes.load(path)
    routes.check_model({layer.path: layer.experts for layer in routes.layers}, "MODEL")


@pytest.mark.parametrize(
    ("experts", "what"),
    [
        ({}, "has 8 experts in it, and no in MODEL"),
        ({"model.layers.0.mlp.experts": 8}, r"layers.1.mlp.experts has 8 experts in it, and no in MODEL"),
        ({f"model.layers.{n}.mlp.experts": 16 for n in range(2)}, "has 8 experts in it, and 16 in MODEL"),
        ({f"model.layers.{n}.mlp.experts": 8 for n in range(3)}, "layers.2.mlp.experts has no experts in it, and 8"),
    ],
)
def test_another_model_is_refused(path: Path, experts: dict[str, int], what: str) -> None:
    with pytest.raises(TraceError, match=what):
        Routes.load(path).check_model(experts, "MODEL")
