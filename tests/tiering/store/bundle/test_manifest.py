"""The manifest: what is written is read back, and nothing else is taken for one."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.errors import BundleCorrupt, BundleVersionError
from penstock.tiering.store.bundle.manifest import (
    ENCODED,
    TENSOR_ALIGNMENT,
    Block,
    BundleDrive,
    DataFile,
    Manifest,
    Packing,
    TensorSpec,
    dump,
    parse,
    place_tensors,
    signed,
)
from penstock.tiering.units import PAGE, BlockId, Extent

names = st.text(min_size=1, max_size=12)
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
entries = st.tuples(names, names, shapes, st.integers(0, 9000))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    blocks, lengths = [], [0] * draw(st.integers(1, 3))
    modules = draw(st.lists(names, unique=True, max_size=6))
    for number, module in enumerate(modules):
        file = min(number, len(lengths) - 1)
        tensors, length = place_tensors(draw(st.lists(entries, max_size=3)))
        extent = Extent(file, lengths[file], max(PAGE, length))
        kind = draw(st.sampled_from(["dense", "expert"]))
        blocks.append(Block(BlockId(kind, module, number), extent, draw(names), tensors, draw(st.booleans())))
        lengths[file] = extent.end
    drives = tuple(BundleDrive(f"/d{n}" if n else "", n + 7) for n in range(draw(st.sampled_from([0, 2, 3]))))
    on = [draw(st.integers(0, max(0, len(drives) - 1))) for _ in lengths]
    files = tuple(DataFile(f"data-{n:05}.bin", length, on[n]) for n, length in enumerate(lengths))
    tied = draw(st.dictionaries(names, names, max_size=2))
    notes = tuple(draw(st.lists(names, max_size=2)))
    return Manifest(draw(names), draw(names), "bfloat16", "as-is", tied, files, tuple(blocks), drives, notes)


MANIFEST = Manifest(
    identity="i",
    checkpoint="c",
    dtype="float32",
    codec="as-is",
    tied={"b": "a"},
    files=(DataFile("data-00000.bin", 3 * PAGE),),
    blocks=(
        Block(BlockId("dense", "m"), Extent(0, 0, PAGE), "00", (TensorSpec("m.a", "float32", (2, 3), 0, 24),), True),
        Block(BlockId("expert", "e", 1), Extent(0, PAGE, 2 * PAGE), "11", (TensorSpec("e.w", "int8", (), 64, 1),)),
    ),
)


@given(manifests())
def test_what_is_dumped_is_parsed(manifest: Manifest) -> None:
    assert parse(dump(manifest), "here") == manifest
    assert dump(parse(dump(manifest), "here")) == dump(manifest)


STRIPED = replace(
    MANIFEST,
    files=(DataFile("data-00000.bin", 3 * PAGE, 1), DataFile("data-00001.bin", PAGE, 0)),
    drives=(BundleDrive("", 2), BundleDrive("/b", 1)),
)


def test_an_encoded_matrix_is_one_that_older_versions_refuse() -> None:
    block = MANIFEST.blocks[1]
    packed = replace(block.tensors[0], dtype="bfloat16", shape=(8, 8), packing=Packing("int8", 1, True, 24))
    encoded = replace(MANIFEST, blocks=(MANIFEST.blocks[0], replace(block, tensors=(packed,))))
    document = json.loads(dump(encoded))
    assert document["version"] == 3
    assert document["blocks"][1]["tensors"] == [["e.w", "bfloat16", [8, 8], 64, 1, ["int8", 1, True, 24]]]
    assert parse(dump(encoded), "here") == encoded


def test_a_plain_bundle_is_one_that_older_versions_read() -> None:
    document = json.loads(dump(MANIFEST))
    assert document["version"] == 1
    assert "drives" not in document
    assert document["files"] == [{"name": "data-00000.bin", "length": 3 * PAGE}]
    assert json.loads(dump(STRIPED))["version"] == 2


def test_drives_have_places_and_bytes(tmp_path: Path) -> None:
    assert STRIPED.places(tmp_path) == [tmp_path, Path("/b")]
    assert STRIPED.drive_bytes == (PAGE, 3 * PAGE)
    assert STRIPED.drive_of(STRIPED.blocks[0]) == 1
    assert (MANIFEST.places(tmp_path), MANIFEST.drive_bytes) == ([tmp_path], (3 * PAGE,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"drives": ()},
        {"drives": (BundleDrive("", 1),)},
        {"drives": (BundleDrive("/a", 1), BundleDrive("/b", 1))},
        {"drives": (BundleDrive("", 1), BundleDrive("b", 1))},
        {"files": (DataFile("data-00000.bin", 3 * PAGE, -1),)},
    ],
)
def test_drives_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    document = json.loads(dump(STRIPED)) | json.loads(json.dumps({k: [asdict(x) for x in v] for k, v in wrong.items()}))
    with pytest.raises(BundleCorrupt, match="drive"):
        parse(json.dumps(signed(document)), "here")


def test_total_bytes_are_those_of_the_files() -> None:
    assert MANIFEST.total_bytes == 3 * PAGE


@given(st.lists(entries, max_size=8))
def test_tensors_are_placed_aligned_and_apart(tensors: list[tuple[str, str, tuple[int, ...], int]]) -> None:
    specs, length = place_tensors(tensors)
    assert length % PAGE == 0
    end = 0
    for spec, (name, dtype, shape, size) in zip(specs, tensors, strict=True):
        assert (spec.name, spec.dtype, spec.shape, spec.length) == (name, dtype, shape, size)
        assert spec.offset % TENSOR_ALIGNMENT == 0
        assert end <= spec.offset < end + TENSOR_ALIGNMENT
        end = spec.offset + size
    assert end <= length < end + PAGE


def test_a_newer_version_says_so() -> None:
    document = json.loads(dump(MANIFEST)) | {"version": ENCODED + 1}
    with pytest.raises(BundleVersionError, match=f"here has bundle version {ENCODED + 1}.*upgrade penstock"):
        parse(json.dumps(document), "here")


def changed(path: list[Any], value: Any) -> str:
    document = json.loads(dump(MANIFEST))
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return json.dumps(signed(document))  # so that only the change itself is wrong


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], "other"),
        (["version"], None),
        (["files"], 7),
        (["files", 0, "length"], "x"),
        (["files", 0, "length"], 2 * PAGE),
        (["blocks"], [1]),
        (["blocks", 0, "id"], ["dense", "m"]),
        (["blocks", 1, "id"], ["dense", "m", 0]),
        (["blocks", 0, "extent"], [1, 0, PAGE]),
        (["blocks", 0, "extent"], [0, 0, 0]),
        (["blocks", 0, "extent"], [0, 0, PAGE + 1]),
        (["blocks", 0, "extent"], [0, 512, PAGE]),
        (["blocks", 0, "extent"], [0, 0, 2 * PAGE]),
        (["blocks", 1, "extent"], [0, 0, 2 * PAGE]),
        (["blocks", 0, "tensors", 0, 3], -1),
        (["blocks", 0, "tensors", 0, 4], PAGE + 1),
    ],
)
def test_a_damaged_manifest_is_refused(path: list[Any], value: Any) -> None:
    with pytest.raises(BundleCorrupt, match=r"here is damaged .*pack again"):
        parse(changed(path, value), "here")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', dump(MANIFEST)[:-1], dump(MANIFEST)[:100]])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(BundleCorrupt, match="here is damaged"):
        parse(text, "here")


@given(st.data())
def test_a_flipped_bit_is_seen(data: st.DataObject) -> None:
    raw = bytearray(dump(MANIFEST).encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 6))
    with pytest.raises((BundleCorrupt, BundleVersionError), match="here"):
        parse(raw.decode(), "here")
